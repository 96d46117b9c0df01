"""Rows of every public format, written by us to its documented schema, with the odd cases that its files hold."""

from __future__ import annotations

from typing import Any

Rows = list[Any]

LETTERED = ["A. red", "B. blue"]

VIDEO_R1: Rows = [
    {"problem_id": 7, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice", "options": LETTERED,
     "process": "<think>It is blue.</think>", "solution": "<answer>B</answer>", "path": "./clips/7.mp4", "data_source": "Star"},
    {"problem_id": 8, "problem": "How far?", "data_type": "image", "problem_type": "regression", "options": [],
     "solution": "<answer>1,250.50</answer>", "path": "./a.png", "data_source": "geo"},
    {"problem_id": "x9", "problem": "Half?", "data_type": "image", "problem_type": "numerical", "options": None,
     "solution": "<answer>\\frac{1}{2}</answer>", "path": "a.png", "data_source": "geo"},
    {"problem_id": 10, "problem": "Say it", "data_type": "video", "problem_type": "free-form", "options": [],
     "solution": "<answer>A man walks.</answer>", "path": "./v.mp4", "data_source": "Star", "split": "hard"},
    {"problem_id": 11, "problem": "Pick", "data_type": "video", "problem_type": "multiple choice", "options": ["(A) x", "(B) y"],
     "solution": "<answer>A</answer>", "path": "./v.mp4", "data_source": "Star"},
]  # fmt: skip
VIDEO_R1_BAD: dict[str, Any] = {
    "letter": VIDEO_R1[0] | {"solution": "<answer>D</answer>"},
    "tags": VIDEO_R1[0] | {"solution": "<answer>B"},
    "path": VIDEO_R1[0] | {"path": "/data/7.mp4"},
    "problem_type": VIDEO_R1[0] | {"problem_type": "riddle"},
    "field": VIDEO_R1[0] | {"problem": None},
    "options": VIDEO_R1[0] | {"options": ["A. red", "B. "]},
    "not_an_object": "a row",
}

LLAVA: Rows = [
    {"id": "c1", "video": "v.mp4", "conversations": [
        {"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A red ball."},
        {"from": "human", "value": "How many?\nA. one\nB. two"}, {"from": "gpt", "value": "B"}]},
    {"image": ["a.png", "b.png"], "data_path": "shots", "conversations": [
        {"from": "human", "value": "Compare."}, {"from": "gpt", "value": "yes"}]},
    {"id": "t", "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    [{"id": "p1", "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
     {"id": "p2", "conversations": [{"from": "human", "value": "c?"}, {"from": "gpt", "value": "d"}]}],
]  # fmt: skip

STGR: Rows = [
    {"id": "s1", "source": "STR_plm_rdcap", "task": "temporal-spatial free-form QA", "question": "Who?", "answer": "A dog runs.",
     "video_path": "d.mp4", "key_frames": [{"idx": 3, "time": 1.5, "path": "d_3.jpg"}], "image_size": [640, 480],
     "key_items": {"3": {"dog": [[0.1, 0.2, 0.5, 0.6]], "cat": None}, "9": {"dog": [[0.1, 0.2, 0.3, 0.4]]}, "4": None},
     "reasoning_process": "<obj>dog</obj><box>[0.1,0.2,0.5,0.6]</box>at<t>1.5</t>s"},
    {"id": "s2", "source": "TVG_x", "task": "temporal QA", "question": "When?", "answer": "[1.0, 4.5]", "video_path": "e.mp4"},
    {"id": "s3", "source": "TVG_x", "task": "temporal QA (MCQ)", "question": "Pick:\n(A) run\n(B) jump", "answer": "B\n[2.0, 3.0]",
     "video_path": "e.mp4"},
    {"id": "s4", "source": "gqa", "task": "visual QA", "question": "Where is the cup?", "image_path": "g.jpg", "image_size": [200, 100],
     "answer": "<obj>cup</obj><box>[20,10,100,60]</box>", "reasoning_process": "<obj>cup</obj><box>[20,10,100,60]</box> here"},
    {"id": "s5", "source": "videor1", "task": "General video QA MCQ", "question": "Which (A) tea (B) milk", "answer": "A", "video_path": "f.mp4"},
    {"id": "s6", "source": "TVG_sft", "task": "temporal QA", "question": "When?", "answer": "From <t>1</t>s to <t>2.5</t>s",
     "video_path": "e.mp4", "reasoning_process": "at <t>1</t>s"},
]  # fmt: skip

MS_SWIFT: Rows = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>Find the <ref-object>"},
                  {"role": "assistant", "content": "<bbox>"}], "images": ["a.png"],
     "objects": {"ref": ["sheep"], "bbox": [[20, 10, 100, 60]]}},
    {"messages": [{"role": "user", "content": "<video>How many?"}], "videos": ["v.mp4"], "solution": "<answer>3</answer>", "level": 2},
    {"messages": [{"role": "user", "content": "<video>Say."}, {"role": "assistant", "content": "<think>look</think><answer>a cat</answer>"}],
     "videos": [["f1.png", "f2.png"]]},
    {"messages": [{"role": "user", "content": "<image>Box it"}], "images": ["a.png"], "solution": "right",
     "objects": {"ref": ["cup"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}},
]  # fmt: skip

TRL: Rows = [
    {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}], "images": ["a.png"],
     "solution": "red", "privileged_context": "It is red."},
    {"prompt": [{"role": "user", "content": "1 + 1?"}], "completion": [{"role": "assistant", "content": "<think>add</think><answer>2</answer>"}]},
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "a slow dance"}]},
]  # fmt: skip

VERL: Rows = [
    {"data_source": "geo3k", "prompt": [{"role": "user", "content": "<video>How many?"}], "ability": "count",
     "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"split": "train", "index": 12},
     "videos": [{"video": "file://v.mp4", "fps": 2.0, "max_frames": 64}]},
]  # fmt: skip

EASYR1: Rows = [
    {"problem": "<image>Area?", "answer": "12.5", "images": ["a.png"]},
    {"problem": "Which?", "options": LETTERED, "answer": "blue", "videos": ["v.mp4"], "problem_type": "multiple choice",
     "data_type": "video", "has_offline_trajectory": True, "offline_output": "<think>sky</think><answer>B</answer>",
     "preprocessed_video": "cache/1.pt"},
]  # fmt: skip

VLM_R1: Rows = [
    {"id": 1, "image": "a.png", "conversations": [{"from": "human", "value": "<image>Where is the cup?"}, {"from": "gpt", "value": "[20, 10, 100, 60]"}]},
    {"id": 2, "image": "a.png", "conversations": [{"from": "human", "value": "Count."}, {"from": "gpt", "value": "<answer> 3 </answer>"}],
     "accu_reward_method": "default"},
]  # fmt: skip

TINYLLAVA: Rows = [
    {"video_filename": "NextQA/v.mp4", "problem": "Why?\nA. rain\nB. sun", "solution": "<answer>B</answer>"},
    {"video_filename": "v.mp4", "problem": "Why?", "options": ["rain", "sun"], "solution": "A", "problem_id": 5},
]  # fmt: skip

NEXTGQA_CSV = """video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
111,643,640,480,why did he run,to win,2,CW,to eat,to win,to sit,to sleep,to hide
111,643,640,480,"what, then",3,7,TN,eat,win,sit,sleep,hide
222,300,640,480,why,x,1,CW,a,b,c,d,e
"""
NEXTGQA_SPANS = {"111": {"duration": 21, "fps": 29.97, "location": {"2": [[0.0, 6.1], [9.2, 21.5]], "7": [[1.0, 2.0]]}}}
NEXTGQA_PATHS = {"111": "1164/111"}

CHARADES = "AO8RW 0.0 6.9##a person is putting a book on a shelf.\nBBBBB 2.0 31.0##opens a door\nCCCCC 9.0 4.0##sits\n"
CHARADES_DURATIONS = "id,length\nAO8RW,33.67\nBBBBB,30.0\nCCCCC,20\n"

COLUMNS: Rows = [
    {"uid": 1, "q": "Which?", "a": 1, "choices": ["red", "blue"], "clip": "v.mp4", "s": 1.0, "e": 4.0, "note": "n"},
    {"uid": 2, "q": "Where?", "a": "here", "choices": None, "clip": "v.mp4", "s": None, "e": None, "note": None},
]  # fmt: skip
COLUMN_NAMES = {
    "id": "uid",
    "question": "q",
    "answer": "a",
    "options": "choices",
    "video": "clip",
    "start": "s",
    "end": "e",
}
