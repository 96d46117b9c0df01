from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.observe_data import make_batch, make_group
from visd.observe.accumulate import SAMPLE_SIZE, Mean, Metrics, Quantiles, Std, exact_sum, merged, reduce
from visd.observe.metrics import drop_metrics, group_metrics, token_metrics
from visd.observe.records import read_dump, rollout_records, to_line, token_traces
from visd.observe.timing import PhaseTimer, time_metrics
from visd.types import RolloutGroup, VisdError


def test_group_metrics_have_the_values_of_the_rollouts() -> None:
    groups = [make_group("a", [1.0, 0.0]), make_group("b", [0.5, 0.5], family="when")]
    values = group_metrics(groups).values()
    assert values["reward/accuracy"] == 0.5
    assert values["reward/correct"] == 0.25
    assert values["accuracy/which"] == 0.5
    assert values["reward/total"] == pytest.approx(0.7)
    assert values["reward/format"] == 1.0
    assert "reward/spatial_iou" not in values  # applies to no rollout
    assert values["advantage/std"] == pytest.approx(np.std([0.5, -0.5, 0, 0]))
    assert values["group/no_variance_share"] == 0.5
    assert values["rollout/truncated"] == 0.5
    assert values["rollout/length_mean"] == 3.5 and values["rollout/length_max"] == 4
    assert values["judge/status_timeout"] == 2 and values["judge/answer"] == pytest.approx((0 + 0.5) / 2)


def test_token_metrics_read_no_padding_and_split_right_from_wrong() -> None:
    group = make_group("a", [1.0, 0.0], lengths=[3, 7])
    batch, credit, scores = make_batch([group])
    values = token_metrics(batch, credit, scores).values()
    assert credit.log_ratio is not None
    assert values["gap/right_mean"] == pytest.approx(credit.log_ratio[0, :3].mean().item())
    assert values["gap/wrong_q50"] == pytest.approx(np.median(credit.log_ratio[1].tolist()))
    assert values["policy/entropy"] == 2.0
    assert values["weight/mean"] == pytest.approx(credit.weights[batch.mask].mean().item())
    assert values["weight/clip_share"] == pytest.approx(credit.clipped[batch.mask].float().mean().item())  # type: ignore[index]
    assert values["engine/logp_diff_mean"] == pytest.approx(0.1)


def test_rows_without_a_teacher_have_no_gap() -> None:
    values = token_metrics(*make_batch([make_group("a", [1.0, 0.0])], teacher=False)).values()
    assert not [name for name in values if name.startswith("gap/")]
    assert values["weight/teacher_share"] == 0.0


def test_reduction_does_not_depend_on_the_split() -> None:
    groups = [make_group("s" * (i + 1), [1.0, 0.0, 0.3], lengths=[50, 900, 700]) for i in range(6)]

    def data(part: list[RolloutGroup]) -> Metrics:
        return merged([group_metrics(part), token_metrics(*make_batch(part))])

    whole = data(groups).values()
    by_rank = [data([group]) for group in groups]
    random.Random(0).shuffle(by_rank)
    assert sum(900 for _ in groups) > SAMPLE_SIZE  # the quantiles are of a sample
    assert reduce(by_rank[0], lambda mine: [*by_rank[1:3], mine, merged(by_rank[3:])]) == whole


def test_mean_is_exact_for_values_that_float_sums_lose() -> None:
    values = [1e16, 1.0, -1e16, 0.1] * 3
    forward = Mean.of(values)
    parts = Mean()
    for value in reversed(values):
        parts = parts.merge(Mean.of([value]))
    assert forward.finish("x") == parts.finish("x") == {"x": math.fsum(values) / 12}


def test_sums_of_nonfinite_values_stay_nonfinite() -> None:
    assert exact_sum([1.0, math.inf]) == (math.inf,)
    assert math.isnan(exact_sum([math.nan, 1.0])[0])
    assert math.isnan(Mean.of([math.inf]).merge(Mean.of([-math.inf])).finish("x")["x"])


def test_quantiles_are_exact_for_small_and_close_for_large_data() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=100)
    assert Quantiles.of(rng.random(100), small).finish("d")["d_q10"] == np.quantile(small, 0.1)
    large = rng.normal(size=100_000)
    kept = Quantiles.of(rng.random(100_000), large)
    assert len(kept.values) == SAMPLE_SIZE
    assert kept.finish("d")["d_q90"] == pytest.approx(1.2816, abs=0.08)


def test_a_name_keeps_its_kind() -> None:
    metrics = Metrics()
    metrics.mean("x", [1.0])
    with pytest.raises(TypeError, match="'x' is a Mean, cannot add a Sum"):
        metrics.sum("x", 1.0)


def test_empty_data_reports_nothing_but_zero_sums() -> None:
    assert Std().finish("s") == {} and Mean().finish("m") == {} and Quantiles().finish("q") == {}
    assert drop_metrics({}).values() == {"drops/total": 0.0}
    assert drop_metrics({"decode": 2, "too_long": 1}).values() == {
        "drops/decode": 2,
        "drops/too_long": 1,
        "drops/total": 3,
    }


def test_phase_timer_adds_up_and_starts_anew() -> None:
    now = [0.0]
    synced: list[float] = []
    timer = PhaseTimer(synchronize=lambda: synced.append(now[0]), clock=lambda: now[0])
    for seconds in (1.0, 2.0):
        with timer.phase("rollout"):
            now[0] += seconds
    now[0] += 0.5
    assert timer.take() == {"rollout": 3.0, "step": 3.5}
    assert len(synced) == 2
    assert timer.take() == {"step": 0.0}
    ranks = merged([time_metrics({"rollout": 3.0}), time_metrics({"rollout": 5.0})])
    assert ranks.values() == {"time/rollout": 5.0}


def test_records_round_trip_with_their_tokens(tmp_path) -> None:  # type: ignore[no-untyped-def]
    groups = [make_group("a", [1.0, 0.0], lengths=[3, 7])]
    traces = token_traces(*make_batch(groups))
    records = rollout_records(5, groups, traces)
    path = tmp_path / "step_000005.jsonl"
    path.write_text("".join(to_line(record) + "\n" for record in records))
    back = read_dump(path)
    assert [json.loads(to_line(r)) for r in back] == [json.loads(to_line(r)) for r in records]
    assert back[1].tokens is not None and len(back[1].tokens.weight) == 7
    assert back[0].tokens is not None and back[0].tokens.gap is not None and max(back[0].tokens.gap) < 99
    assert back[0].report is not None and back[0].report["status"] == "timeout"
    assert rollout_records(5, groups)[0].tokens is None
    path.write_text('{"step": 1}\n')
    with pytest.raises(VisdError, match="line 1"):
        read_dump(path)


def test_separator_characters_in_an_answer_do_not_break_a_dump(tmp_path) -> None:  # type: ignore[no-untyped-def]
    group = make_group("a", [1.0])
    text = "line\u2028end\x85\n\x0c"
    group = replace(group, rollouts=(replace(group.rollouts[0], text=text),))
    path = tmp_path / "dump.jsonl"
    path.write_text("".join(to_line(record) + "\n" for record in rollout_records(1, [group])), encoding="utf-8")
    assert read_dump(path)[0].text == text
