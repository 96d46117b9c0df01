"""The zoom tool: the frames are the file's, and every forward over an answer sees them at the same places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.runs import assert_same_gradients, capture_gradients, small_config, small_run
from tests.unit.test_turns import Scripted
from visd.config import ConfigError
from visd.media.video import decode
from visd.rollout.base import Sampling
from visd.rollout.tools import ToolError
from visd.rollout.turns import TurnsEngine
from visd.rollout.zoom import Zoom
from visd.train.launch import run_stage
from visd.train.loop import with_rewards
from visd.train.run import Run, set_up
from visd.train.teach import items_of
from visd.train.update import update_policy
from visd.types import Prompt, RolloutGroup, ScoreNeeds

SAMPLING = Sampling(n=2, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=200)
TOOLS = "rollout.engine.tools=[calculator,zoom]"
SOD = ("method=sod_self", TOOLS, "rollout.engine.zoom_frames=2", "rollout.max_new_tokens=120", "rollout.max_mismatch=0")


def asking(start: float, end: float, *box: float) -> str:
    arguments: dict[str, Any] = {"start": start, "end": end} | ({"box": list(box)} if box else {})
    return f"<tool_call>{json.dumps({'name': 'zoom', 'arguments': arguments})}</tool_call>"


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def run(request: pytest.FixtureRequest, small_world: Path, tmp_path: Path) -> Run:
    """A run whose engine says what it is told, then lets the model go on."""
    model: Path = request.getfixturevalue(f"tiny_{request.param}")
    return small_run(small_world, model, tmp_path, *SOD, "data.train=[train.jsonl]", "optim.lr=1e-3")


def engine_of(run: Run, *said: str) -> TurnsEngine:
    engine = run.engine
    assert isinstance(engine, TurnsEngine)
    engine._inner = Scripted(run.policy, run.processor.tokenizer, list(said))
    return engine


def group_of(run: Run, *said: str, number: int = 0) -> RolloutGroup:
    sample, prompt = run.step_prompts(0)[number]
    (rollouts,) = engine_of(run, *said).generate([prompt], SAMPLING, [[1, 2]], 0)
    group = RolloutGroup(sample, prompt, rollouts, advantages=(1.0, -0.5))
    return replace(with_rewards(run, group, 0), advantages=(1.0, -0.5))


def logp_of(run: Run, groups: Sequence[RolloutGroup]) -> list[torch.Tensor]:
    rows = [item.row() for item in items_of(run, groups)]
    scores = run.policy.score(rows, temperature=1.0, needs=ScoreNeeds())
    return [scores.logp[i, : len(row.response_ids)].detach() for i, row in enumerate(rows)]


def test_the_frames_are_those_of_the_file(run: Run) -> None:
    sample, prompt = run.step_prompts(0)[0]
    tool = Zoom(run.processor, frames=4, max_pixels=28 * 28 * 16)
    said = tool.run({"start": 0.5, "end": 1.5}, prompt)
    cache = run.processor.frame_cache
    assert cache is not None
    settings = replace(cache.settings, min_frames=2, max_frames=4, max_pixels=28 * 28 * 16, total_pixels=28 * 28 * 64)
    direct = decode(
        cache.resolve(sample.media[0].path), start=0.5, end=1.5, fps=4.0, settings=settings, factor=cache.factor
    )
    assert len(said.frames) == 4 and all(0.5 <= frame.times[0] <= 1.5 for frame in said.frames)
    assert [frame.times[0] for frame in said.frames] == list(direct.times)
    assert np.array_equal(np.concatenate([frame.pixels for frame in said.frames]), direct.pixels)
    assert said.text == "Frames at " + ", ".join(f"{time:.2f} s" for time in direct.times) + ": "

    half = tool.run({"start": 0.5, "end": 1.5, "box": [0, 0, 0.5, 1]}, prompt)
    whole, part = said.frames[0].pixels[0], half.frames[0].pixels[0]
    assert half.frames[0].times == said.frames[0].times
    assert part.shape[0] > whole.shape[0] or part.shape[0] / part.shape[1] > whole.shape[0] / whole.shape[1]
    assert all(side % cache.factor == 0 for side in part.shape[:2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "not a window"),
        ({"start": 2, "end": 1}, "not a window"),
        ({"start": True, "end": 2}, "not a window"),
        ({"start": 0, "end": float("nan")}, "not a window"),
        ({"start": -1, "end": 1}, "outside the video"),
        ({"start": 1000, "end": 1001}, "fewer than two frames there"),
        ({"start": 1.0, "end": 1.001}, "fewer than two frames there"),
        ({"start": 0, "end": 1, "box": [0, 0, 0.01, 1]}, "not a box"),
        ({"start": 0, "end": 1, "box": [0, 0, 2, 1]}, "not a box"),
        ({"start": 0, "end": 1, "box": "all"}, "not a box"),
    ],
)
def test_calls_without_a_result(
    arguments: dict[str, Any], said: str, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *SOD, "data.train=[train.jsonl]")
    with pytest.raises(ToolError, match=said):
        Zoom(run.processor, 2, 10000).run(arguments, run.step_prompts(0)[0][1])
    with pytest.raises(ToolError, match="no video"):
        Zoom(run.processor, 2, 10000).run(arguments, replace(run.step_prompts(0)[0][1], media=()))


def test_engine_trainer_and_transformers_see_the_same(run: Run) -> None:
    """Two zooms in an answer; what the model itself wrote after them has the same probability everywhere."""
    group = group_of(run, "look " + asking(0.5, 1.5), "again " + asking(1.0, 2.0, 0, 0, 0.5, 0.5), "")
    for rollout, logp in zip(group.rollouts, logp_of(run, [group]), strict=True):
        assert rollout.calls == ("ok", "ok") and rollout.media is not None and len(rollout.media.times) == 4
        last = max(i for i, own in enumerate(rollout.own) if not own) + 1
        assert last < len(rollout.token_ids), "the model went on"
        assert logp[last:].tolist() == pytest.approx(list(rollout.logp[last:]), abs=2e-5)
        assert all(logp[i] == 0 for i, own in enumerate(rollout.own) if not own)
        expected = by_transformers(run, group.prompt, rollout)
        own = torch.tensor(rollout.own)
        torch.testing.assert_close(logp[own], expected[own], atol=2e-5, rtol=1e-5)


def by_transformers(run: Run, prompt: Prompt, rollout: Any) -> torch.Tensor:
    """The whole conversation by a model that knows nothing of rows: ids, pixels, and positions said explicitly."""
    model = AutoModelForImageTextToText.from_pretrained(run.policy.source, dtype=torch.float32)
    media, ids = rollout.media, torch.tensor(rollout.token_ids)
    positions = media.positions + torch.tensor([len(prompt), *[prompt.next_position] * 3])[:, None]
    logits = model(
        input_ids=torch.cat([prompt.input_ids, ids])[None],
        mm_token_type_ids=torch.cat([prompt.mm_token_type_ids, media.token_types])[None],
        position_ids=torch.cat([prompt.position_ids, positions], dim=1)[:, None],
        pixel_values_videos=prompt.vision.pixel_values_videos,
        video_grid_thw=prompt.vision.video_grid_thw,
        pixel_values=media.vision.pixel_values,
        image_grid_thw=media.vision.image_grid_thw,
    ).logits[0, len(prompt) - 1 : -1]
    logits[:, run.policy.model.banned] = -torch.inf
    return logits.detach().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def test_other_frames_change_what_comes_after_them_and_nothing_before(run: Run) -> None:
    first, second = (group_of(run, f"look {asking(start, start + 1)}", "it is red") for start in (0.25, 2.25))
    swapped = replace(
        first,
        rollouts=tuple(
            replace(one, media=replace(one.media, vision=other.media.vision))
            for one, other in zip(first.rollouts, second.rollouts, strict=True)
            if one.media is not None and other.media is not None
        ),
    )
    run.policy.forget_features()
    before = logp_of(run, [first])[0]
    run.policy.forget_features()
    after = logp_of(run, [swapped])[0]
    seen = first.rollouts[0].own.index(False)
    torch.testing.assert_close(before[:seen], after[:seen], atol=1e-6, rtol=0)
    assert (before - after)[seen:].abs().max() > 1e-4


@pytest.mark.parametrize("run", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_a_mixed_group_learns_as_its_rollouts_do_alone(run: Run) -> None:
    """One rollout that zoomed beside one that did not; with the prompt once, and once a rollout."""
    zoomed, plain = group_of(run, f"look {asking(0.5, 1.5)}", "red"), group_of(run, "it is blue")
    both = replace(
        zoomed,
        rollouts=(zoomed.rollouts[0], replace(plain.rollouts[1], seed=3)),
        rewards=(zoomed.rewards[0], plain.rewards[1]),
    )
    assert run.policy.shares_prefixes
    kept = []
    for shared in (True, False):
        run.policy.shares_prefixes = shared
        kept.append(capture_gradients(run))
        update_policy(run, [both], {}, {}, 0)
    assert kept[0] and any(bool(g.abs().max() > 0) for g in kept[0].values())
    assert_same_gradients(*kept, relative=1e-4)
    run.policy.shares_prefixes = True
    together = logp_of(run, [both])
    run.policy.shares_prefixes = False
    for one, other in zip(together, logp_of(run, [both]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["sod_self", "sod"])
def test_a_run_trains_on_answers_with_frames_and_goes_on(
    method: str,
    small_world: Path,
    tiny_qwen2_5_vl: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a teacher that is the start of the policy, and with another model; text samples beside videos."""
    made = TurnsEngine.__post_init__

    def scripted(self: TurnsEngine) -> None:
        made(self)
        self._inner = Scripted(self.policy, self.tokenizer, [f"look {asking(0.5, 1.5)}", ""])

    monkeypatch.setattr(TurnsEngine, "__post_init__", scripted)
    settings = (
        f"method={method}", *SOD[1:], "data.train=[train.jsonl,text_train.jsonl]", "tracking.dump_every=1",
        *([f"teacher.path={tiny_teacher}"] if method == "sod" else []),
    )  # fmt: skip
    for stop in (1, 0):
        config = small_config(small_world, tiny_qwen2_5_vl, tmp_path, *settings, f"train.stop_after={stop}")
        assert run_stage(config) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) for line in lines)
    assert all(line["rollout/calls"] >= 1 and line["teacher/row_share"] == 1 for line in lines)
    assert {line["rollout/failed_call_share"] for line in lines} != {1.0}
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.freeze=[]",), r"model\.freeze: zoom needs a vision tower that is frozen"),
        (("rollout.engine.zoom_frames=3",), r"rollout\.engine\.zoom_frames: 3 must be even"),
        (("rollout.engine.tools=[lens]",), r"rollout\.engine\.tools: 'lens' is not one of calculator, zoom"),
        (("rollout.max_staleness=1", "objective.old_logp=engine"), r"rollout\.max_staleness: answers with frames"),
    ],
)
def test_what_is_refused(
    settings: tuple[str, ...], message: str, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up(small_config(small_world, tiny_qwen2_5_vl, tmp_path, *SOD, *settings))
