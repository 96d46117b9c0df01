"""Local copies of benchmarks in their published layout, rows written for the tests: every odd case that is known.

Each writer fills a folder and returns how many questions a reader must find there. Videos are not written: readers name
them and do not open them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPTIONS = ["Red.", "Blue.", "A green one.", "None of them."]


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def videomme(root: Path) -> int:
    rows = [
        {
            "video_id": "001", "videoID": "fFjv93ACGo8", "question_id": f"001-{i}", "duration": duration, "domain": "Sports",
            "task_type": "Counting Problem", "question": "Which colour?", "answer": "C",
            "options": [f"{letter}. {text}" for letter, text in zip("ABCD", OPTIONS)],
        }
        for i, duration in enumerate(("short", "medium", "long"), 1)
    ]  # fmt: skip
    parquet(root / "videomme/test-00000-of-00001.parquet", rows)
    return 3


def mvbench(root: Path) -> int:
    row = {
        "video": "v.mp4",
        "question": "What happened?",
        "candidates": ["Moved.", "Stood.", "Fell."],
        "answer": "Stood.",
    }
    put(root / "json/action_sequence.json", [{**row, "start": 1.5, "end": 4.0}])
    put(root / "json/object_shuffle.json", [row, {**row, "candidates": ["1", "2", "3"], "answer": "3"}])
    return 3


def tempcompass(root: Path) -> int:
    asked = "What does the ball do?\nA. rolls left\nB. rolls right\nC. bounces"
    put(root / "questions/multi-choice.json", {"1": {"action": [{"question": asked, "answer": "B. rolls right"}]}})
    put(root / "questions/yes_no.json", {"1": {"speed": [{"question": "Is it fast?", "answer": "no"}]}})
    match = "Which sentence is right?\nSentence A: The ball rolls.\nSentence B: The ball rests."
    put(
        root / "questions/caption_matching.json",
        {"1": {"order": [{"question": match, "answer": "Sentence A: The ball rolls."}]}},
    )
    return 3


def vsibench(root: Path) -> int:
    shared = {"dataset": "scannet", "scene_name": "scene0", "question": "How many chairs?"}
    rows = [{**shared, "id": 0, "question_type": "object_counting", "ground_truth": "4", "options": None}]
    rows += [
        {**shared, "id": i, "question_type": f"object_rel_direction_{level}", "ground_truth": "B",
         "options": ["A. left", "B. right"]}
        for i, level in enumerate(("easy", "medium", "hard"), 1)
    ]  # fmt: skip
    put(root / "test.jsonl", rows)
    return 4


def videommmu(root: Path) -> int:
    choice = {"question": "Which?", "options": "['3', '4']", "answer": "B", "question_type": "multiple-choice"}
    put(root / "Perception/test.jsonl", [{**choice, "id": "new_Computer_Science_1"}])
    put(root / "Comprehension/test.jsonl", [{**choice, "id": "validation_Art_Theory_2", "options": ["A. 3", "B. 4"]}])
    open_ended = {
        "id": "dev_Math_3",
        "question": "How much?",
        "options": "[]",
        "answer": "2.50",
        "question_type": "open",
    }
    put(root / "Adaptation/test.jsonl", [open_ended])
    return 3


def mmvu(root: Path) -> int:
    choices = {"A": "x", "B": "y", "C": "z", "D": "", "E": ""}
    row = {
        "id": "validation_0",
        "video": "https://host/resolve/main/videos/Art/0.mp4",
        "question_type": "multiple-choice",
    }
    row |= {"metadata": {"subject": "Art"}, "question": "Which?", "choices": choices, "answer": "C"}
    put(root / "validation.json", [row, {**row, "id": "validation_1", "question_type": "open-ended", "answer": "z"}])
    return 1


def longvideobench(root: Path) -> int:
    row = {"video_id": "v", "video_path": "v.mp4", "question": "Which?", "candidates": OPTIONS, "correct_choice": 3}
    put(root / "lvb_val.json", [{**row, "id": "v_0", "duration_group": 600, "question_category": "T2A"}])
    return 1


def lvbench(root: Path) -> int:
    asked = {
        "uid": "7",
        "question": "Which year?\n(A) 1\n(B) 2\n(C) 3\n(D) 4",
        "answer": "D",
        "question_type": ["event"],
    }
    put(
        root / "video_info.meta.jsonl",
        [{"key": "k", "type": "sport", "qa": [asked, {**asked, "uid": "8", "answer": "A"}]}],
    )
    return 2


def mlvu(root: Path) -> int:
    row = {"video": "a.mp4", "question": "Which?", "candidates": ["x", "y"], "answer": "y", "question_type": "plotQA"}
    put(root / "json/1_plotQA.json", [row, row])
    put(
        root / "json/9_summary.json",
        [{"video": "a.mp4", "question": "Sum up.", "answer": "...", "question_type": "summary"}],
    )
    return 2


def charades_sta(root: Path) -> int:
    put(root / "charades_sta_test.txt", "3MSZA 24.3 30.4##person turn a light on.\n3MSZA 0 5##a person eats.\n\n")
    return 2


def nextgqa(root: Path) -> int:
    row = "{},30,1,1,why did he run,late,{},CW,hungry,late,cold,tired,lost\n"
    put(
        root / "test.csv",
        "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        + row.format(1, 0)
        + row.format(1, 9),
    )
    put(root / "gsub_test.json", {"1": {"duration": 30, "location": {"0": [[1.0, 4.0], [8, 9.5]]}, "fps": 30}})
    put(root / "map_vid_vidorID.json", {"1": "0000/1"})
    return 2  # question 9 has no window; the other is asked twice


def gsm8k(root: Path) -> int:
    put(
        root / "test.jsonl",
        [{"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}, {"question": "?", "answer": "#### 1,200"}],
    )
    return 2


def math500(root: Path) -> int:
    row = {"problem": "Half?", "solution": "...", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1}
    put(root / "test.jsonl", [{**row, "unique_id": "test/algebra/1.json"}])
    return 1


def vstar(root: Path) -> int:
    boxes = [{"timestamp": t, "xmin": 0, "ymin": 0, "xmax": 100, "ymax": 50} for t in (2, 3)]
    row = {
        "vid": "v",
        "domain": "Animals",
        "fps": 30,
        "width": 200,
        "height": 100,
        "frame_count": 300,
        "question": "What?",
    }
    row |= {"chain": "", "object": "dog", "answer": "the dog", "temporal_question": "When?", "timestamps": [1.5, 3.9]}
    put(
        root / "V_STaR_test.json",
        [{**row, "spatial_question": "Where?", "spatial_question_2": "Where?", "bboxes": boxes}],
    )
    return 5


WRITERS: dict[str, Callable[[Path], int]] = {
    writer.__name__: writer
    for writer in (
        videomme, mvbench, tempcompass, vsibench, videommmu, mmvu, longvideobench, lvbench, mlvu, charades_sta, nextgqa,
        gsm8k, math500, vstar,
    )
}  # fmt: skip
