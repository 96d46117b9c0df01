"""Small runs for tests: the demo's configuration on a small world with an untrained tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from visd.cli import compose_config
from visd.config import RunConfig, load
from visd.judge.rule import RuleJudge
from visd.parallel.base import StepResult
from visd.train.loop import sample_rollouts, with_reports, with_rewards
from visd.train.run import Run, set_up
from visd.types import RolloutGroup


def small_config(world: Path, model: Path, run_dir: Path, *overrides: str) -> RunConfig:
    """The demo's experiment, two steps of two prompts with four short answers each."""
    return load(
        compose_config(
            [
                "experiment=demo", f"data.root={world}", f"model.path={model}", f"run.dir={run_dir}", "train.steps=2",
                "train.prompts_per_step=2", "optim.lr=1e-4", "rollout.n=4", "rollout.max_new_tokens=12", "train.threads=1",
                "tracking.table_every=0", "tracking.progress=false", "data.frames.workers=0", *overrides,
            ]
        )
    )  # fmt: skip


def small_run(world: Path, model: Path, run_dir: Path, *overrides: str) -> Run:
    return set_up(small_config(world, model, run_dir, *overrides))


def groups_with_advantages(run: Run, step: int = 0) -> list[RolloutGroup]:
    """Sampled, scored and judged groups. An untrained model earns no reward, so advantages are made up."""
    pairs = run.prompts(run.sampler.batch(step))
    groups = [with_rewards(run, g, step) for g in sample_rollouts(run, pairs, step)]
    groups = with_reports(RuleJudge(), groups)
    return [replace(g, advantages=made_up(len(g.rollouts), k)) for k, g in enumerate(groups)]


def made_up(count: int, shift: int) -> tuple[float, ...]:
    values = [(-1) ** i * (0.5 + 0.25 * ((i + shift) % 3)) for i in range(count)]
    return tuple(v - sum(values) / count for v in values)


def capture_gradients(run: Run) -> dict[str, Tensor]:
    """Replace the optimiser step by one that keeps the gradients; filled when `update_policy` ends."""
    grads: dict[str, Tensor] = {}

    def keep(lr: float) -> StepResult:
        for name, parameter in run.policy.model.named_parameters():
            if parameter.grad is not None:
                grads[name] = parameter.grad.clone()
                parameter.grad = None
        return StepResult(grad_norm=0.0, skipped=False)

    run.backend.step = keep  # type: ignore[method-assign]
    return grads


def assert_same_gradients(a: dict[str, Tensor], b: dict[str, Tensor], relative: float) -> None:
    """Equal to `relative` of the largest gradient."""
    assert a.keys() == b.keys() and a
    scale = max(float(g.abs().max()) for g in a.values())
    assert scale > 0
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=relative * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def weights(run: Run) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.policy.model.named_parameters()}


def assert_bit_equal(a: dict[str, Tensor], b: dict[str, Tensor], names: Sequence[str] | None = None) -> None:
    for name in names or a:
        assert torch.equal(a[name], b[name]), name
