"""Every config in configs/method trains on video and text: frozen parts stay, metrics are finite, a resumed run is the same."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import small_config
from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import RewardSection, build, load
from visd.judge.rule import RuleJudge
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.launch import run_stage
from visd.types import JudgeReport, Rewards, Rollout, Sample, Span

METHODS = sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))
WITHOUT_TEACHER = {"grpo"}
SHORTER = {"resd": ("method.writer_tokens=16",)}
"""What keeps a method's own texts short."""
SETTINGS = (
    "data.train=[train.jsonl,text_train.jsonl]", "train.steps=3", "rollout.max_new_tokens=8", "checkpoint.every=1",
    "checkpoint.keep=0", "checkpoint.export=never", "tracking.dump_every=0",
)  # fmt: skip

DIAGNOSTICS = {
    "teacher/row_share", "teacher/entropy", "teacher/token_entropy_q50", "policy/token_entropy_q50", "leak/mention_rate",
    "advantage/token_zero_share", "rollout/deliberation", "group/pass_at_n",
}  # fmt: skip


@pytest.fixture(autouse=True)
def some_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model answers nothing right and says nothing that could be judged.

    A half of its answers, by their text, is taken for right, and all that an answer says as judged to be so.
    """
    report = RuleJudge.report

    def score(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
        right = derive_seed(text) % 2
        return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))

    def judged(judge: RuleJudge, sample: Sample, rollout: Rollout) -> JudgeReport:
        verdict = "right" if derive_seed(rollout.own_text) % 2 else "wrong"
        return replace(report(judge, sample, rollout), spans=(Span(0, len(rollout.text), "logic", verdict),))

    monkeypatch.setattr(loop, "score", score)
    monkeypatch.setattr(RuleJudge, "report", judged)


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step_{step:06d}" / "backend"
    return {
        name: value for path in sorted(folder.glob("weights*.safetensors")) for name, value in load_file(path).items()
    }


def settings_of(method: str, teacher: Path, other: Path) -> tuple[str, ...]:
    """The method's config, with a teacher's model where it asks for one, whose tokenizer is another if it may be."""
    chosen = f"method={method}".split()
    config = load(compose_config(chosen))
    external = config.teacher.weights == "external"
    teacher = other if build(config.method, "method").crosses_tokenizers else teacher
    return (*SETTINGS, *chosen, *SHORTER.get(method, ()), *([f"teacher.path={teacher}"] if external else []))


@pytest.mark.parametrize("method", [*METHODS, "grpo objective=dapo", "grpo objective=gspo objective.mini_batches=2"])
def test_a_method_trains_and_resumes(
    method: str,
    small_world: Path,
    tiny_qwen2_5_vl: Path,
    tiny_teacher: Path,
    tiny_other_tokenizer: Path,
    tmp_path: Path,
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    settings = settings_of(method, tiny_teacher, tiny_other_tokenizer)
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, straight, *settings)) == 0
    metrics = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3]
    wrong = {n: v for m in metrics for n, v in m.items() if isinstance(v, float) and not math.isfinite(v)}
    assert not wrong
    if method.split()[0] not in WITHOUT_TEACHER:
        assert any(m.get("weight/teacher_share", 0) > 0 for m in metrics), "no rollout had a teacher"
        seen = set().union(*metrics)
        if any(m["advantage/abs_max"] > 0 for m in metrics):  # none where a prompt has one rollout
            assert "policy/teacher_to_reward" in seen
        unknown = {"teacher/entropy", "teacher/token_entropy_q50"} if method == "simct" else set()  # other tokens
        assert not DIAGNOSTICS - unknown - seen
        assert method == "simct" or {"gap/right_q50", "gap/wrong_q50"} & seen

    before, after = load_file(tiny_qwen2_5_vl / "model.safetensors"), weights(straight, 3)
    frozen = [name for name in before if "visual." in name]
    assert frozen and not [n for n in after if "visual." in n], "the frozen tower is not among what is trained"
    assert any(not torch.equal(after[n], weights(straight, 1)[n]) for n in after), "nothing was learnt"

    shutil.copytree(straight / "checkpoints/step_000002", resumed / "checkpoints/step_000002")
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, resumed, *settings)) == 0
    again = weights(resumed, 3)
    assert again.keys() == after.keys() and all(torch.equal(again[n], after[n]) for n in after)
    last = json.loads((resumed / "metrics.jsonl").read_text().splitlines()[-1])
    drop = ("time/", "meter/", "media/")
    assert {k: v for k, v in last.items() if not k.startswith(drop)} == {
        k: v for k, v in metrics[-1].items() if not k.startswith(drop)
    }
