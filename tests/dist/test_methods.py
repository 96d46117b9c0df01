"""Methods with statistics over the whole step, in two processes of ZeRO-2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.dist.test_training import launcher, records, start

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize(
    ("method", "port", "settings"),
    [
        ("antisd", 29651, ["method.gate=false"]),
        ("sdpo", 29652, ["teacher.weights=trust_region", "method.success_threshold=0"]),
        ("opd", 29653, ["teacher.path={teacher}", "method.support=union"]),
        ("resd", 29654, ["method.writer_tokens=16"]),
    ],
)
def test_a_method_trains_in_two_processes(
    method: str,
    port: int,
    settings: list[str],
    small_world: Path,
    tiny_qwen2_5_vl: Path,
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    start(
        launcher("zero2", port), "parallel=zero2", f"method={method}", f"data.root={small_world}",
        f"model.path={tiny_qwen2_5_vl}", f"run.dir={tmp_path}", "data.train=[train.jsonl,text_train.jsonl]",
        *(setting.format(teacher=tiny_teacher) for setting in settings),
    )  # fmt: skip
    found = records(tmp_path)
    assert [r["step"] for r in found] == [1, 2] and all(r["weight/teacher_share"] > 0 for r in found)
    assert all(math.isfinite(v) for r in found for v in r.values() if isinstance(v, float))
