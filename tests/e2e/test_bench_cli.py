"""`python -m eval.run benchmark=...` on a real video with a real, untrained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from eval.bench import parse, run
from tests.bench_files import WRITERS
from visd.observe.files import read_jsonl


def test_a_benchmark_is_answered_and_a_missing_video_counts_as_wrong(
    tiny_qwen2_5_vl: Path, small_world: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    WRITERS["charades_sta"](root)
    (root / "charades_sta_test.txt").write_text("AAAAA 0.0 1.0##a square moves.\nBBBBB 0.0 1.0##a square moves.\n")
    video = next(path for path in sorted(small_world.rglob("*.mp4")))
    (root / "Charades_v1_480").mkdir()
    shutil.copy(video, root / "Charades_v1_480/AAAAA.mp4")
    arguments = [f"model={tiny_qwen2_5_vl}", "benchmark=charades_sta", f"root={root}", f"out={out}", "max_new_tokens=4"]
    arguments += ["video.max_pixels=12544", "frames.workers=0", "threads=1"]
    run(parse(arguments))
    lines = read_jsonl(out / "samples.jsonl")
    assert [line["dropped"] for line in lines] == [None, "missing"] and "BBBBB.mp4" in lines[1]["message"]
    assert (
        lines[0]["answers"][0]["tokens"] > 0
        and lines[0]["answers"][0]["scores"].keys() == lines[1]["answers"][0]["scores"].keys()
    )
    document = json.loads((out / "results.json").read_text())
    assert document["result"]["questions"] == 2 and document["result"]["dropped"] == {"missing": 1}
    assert document["protocol"]["changed"] == ["video", "max_new_tokens"]
    run(parse(arguments))
    assert read_jsonl(out / "samples.jsonl") == lines  # nothing was asked again
