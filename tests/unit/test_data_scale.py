"""A small version of scripts/bench/data_tools.py: memory does not follow the number of records, and a kill costs one shard."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from data_tools.__main__ import main
from scripts.bench import data_tools as bench


def test_memory_stays_flat(tmp_path: Path) -> None:
    bench.link_videos(tmp_path, 6000)
    peaks: dict[str, list[float]] = {}
    for count in (600, 6000):
        source = tmp_path / f"{count}.json"
        bench.write_input(source, count)
        for name, arguments in bench.commands(tmp_path, source, 1, 300).items():
            found = bench.measured(arguments)
            assert found.status == 0 and found.seconds > 0
            peaks.setdefault(name, []).append(found.mib)
    assert all(many <= 1.2 * few for few, many in peaks.values()), peaks


def test_a_killed_conversion_repeats_no_finished_shard(tmp_path: Path) -> None:
    source, out, plain = tmp_path / "in.json", tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    bench.write_input(source, 6000)
    command = ["convert", "--from", "stgr", str(source), "--shard-rows", "200"]
    cost = bench.killed_and_restarted([*command, str(out)], out, 30, 10)
    assert cost.again == 0 and 10 <= cost.done < 30
    assert main([*command, str(plain)]) == 0
    assert out.read_bytes() == plain.read_bytes() and not Path(f"{out}.work").exists()


def test_the_table_goes_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "data.md"
    page.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    monkeypatch.setattr(bench, "PAGE", page)
    found = {"convert": {10: bench.Measured(1.0, 100.0, 0), 100: bench.Measured(2.0, 110.0, 0)}}
    chosen = argparse.Namespace(small=10, records=100, num_workers=2, shard_rows=5)
    bench.write_page(bench.text_of(found, bench.Killed(20, 7, 0), chosen))
    text = page.read_text()
    assert "| `convert` | 50 | 100 | 110 | 1.10 |" in text and "old" not in text and text.endswith("after\n")
