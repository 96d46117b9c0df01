"""The page of a set: its numbers by hand, its pictures from real frames, and nothing of the data is markup."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.distributions import Distribution, bin_of, bounds
from data_tools.thumbnails import BAR, HEIGHT, draw, picture_of
from tests.media_files import write_video
from tests.unit.test_data_choose import Record, record, tokens_of, write
from visd.data.manifest import sample_from_record


def test_the_page_of_a_world(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    probe, out = tmp_path / "p.jsonl", tmp_path / "s.html"
    assert main(["probe", "--root", str(small_world), "--out", str(probe)]) == 0
    sets = [str(small_world / "train.jsonl"), str(small_world / "sft_train.jsonl")]
    settings = ["experiment=demo", f"model.path={tiny_qwen2_5_vl}", f"data.root={small_world}"]
    more = ["--root", str(small_world), "--probe", str(probe), "--samples", "5"]
    assert main(["stats", *sets, "--out", str(out), *more, "--shard-rows", "7", "--settings", *settings]) == 0
    numbers = json.loads((tmp_path / "s.html.json").read_text())
    assert numbers["records"] == 48 and numbers["counts"]["file"] == {"sound": 48}
    assert sum(numbers["counts"]["answer type"].values()) == 48
    lengths = [n for name in sets for n in tokens_of(Path(name), small_world, settings).values()]
    assert numbers["numbers"]["tokens"]["total"] == sum(lengths) and numbers["over"] == 0
    page = out.read_text()
    assert page.count("data:image/jpeg") == 5 and 'class="problem"' not in page
    assert main(["stats", *sets, "--out", str(out), *more, "--num-workers", "2", "--overwrite"]) == 0
    plain = json.loads((tmp_path / "s.html.json").read_text())  # neither shards nor processes change it
    assert plain["counts"] == numbers["counts"] and plain["box_map"] == numbers["box_map"]
    assert re.findall('base64,[^"]+', out.read_text()) == re.findall('base64,[^"]+', page)


def test_boxes_and_windows_are_drawn_where_they_are(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 32, 8, size=(160, 120))
    found = record(0, "a.mp4", evidence={
        "windows": [[1.0, 3.0]], "frames": [], "boxes": [{"t": 2.0, "name": "thing", "xyxy": [0.5, 0.5, 0.9, 0.9]}]
    })  # fmt: skip
    order = picture_of(sample_from_record(found, "m:1"), tmp_path / "a.mp4")
    pixels = np.asarray(Image.open(io.BytesIO(draw(order))).convert("RGB"), np.int16)
    assert pixels.shape == (HEIGHT + BAR + 4, 200, 3)

    def near(x: int, y: int, colour: tuple[int, int, int]) -> bool:
        return bool(np.abs(pixels[y, x] - colour).max() < 60)

    assert near(101, 110, (255, 127, 14)) and near(140, 76, (255, 127, 14)) and not near(50, 110, (255, 127, 14))
    line = HEIGHT + 4 + BAR // 2
    assert near(75, line, (31, 119, 180)) and near(125, line, (31, 119, 180))
    assert near(20, line, (221, 221, 221)) and near(180, line, (221, 221, 221))


def test_what_data_says_is_text(tmp_path: Path) -> None:
    evil: Record = record(0, "", messages=[{"role": "user", "content": "<script>alert(1)</script>"}])
    broken = record(1, "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    manifest, out = write(tmp_path / "m.jsonl", [evil, broken]), tmp_path / "s.html"
    assert main(["stats", str(manifest), "--root", str(tmp_path), "--out", str(out)]) == 0
    page = out.read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "this is no video file" in page
    assert all(base64.b64decode(found) for found in re.findall(r'base64,([^"]+)"', page))


def test_distributions_of_parts_add_up() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 999).tolist() + [0.0]
    whole, parts = Distribution(), [Distribution() for _ in range(3)]
    for place, value in enumerate(values):
        whole.add(value)
        parts[place % 3].add(value)
    joined = Distribution()
    for part in parts:
        joined.join(Distribution.from_json(json.loads(json.dumps(part.to_json()))))
    assert joined.bins == whole.bins and joined.total == pytest.approx(whole.total)
    assert (joined.least, joined.most, joined.count) == (0.0, max(values), 1000)
    assert 1.0 <= whole.quantile(0.5) / float(np.median(values)) <= 2**0.5
    assert all(bounds(bin_of(value))[0] <= value * (1 + 1e-9) for value in values if value)
    assert sum(count for _, count in whole.rows()) == 1000
