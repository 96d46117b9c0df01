"""Whether a run shares prefixes, and the comparison with rows by themselves before it first does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from visd.config import ConfigError, RunConfig
from visd.policy.attention import kernel_gap, why_not
from visd.policy.batch import Row
from visd.policy.policy import Policy, compute_dtype
from visd.train.plan import plan_rows
from visd.types import RolloutGroup, ScoreNeeds, VisdError

if TYPE_CHECKING:
    from visd.train.run import Run

log = logging.getLogger(__name__)

LARGEST_GAP = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest mean difference of log-probabilities, nats, that rounding explains, by dtype of activations."""

LARGEST_KERNEL_GAP = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest relative difference of attention's outputs and gradients, by dtype."""


def wants_sharing(config: RunConfig) -> bool:
    """Whether prefixes are shared wherever they can be.

    Raises:
        ConfigError: the setting insists where there is nothing to share.
    """
    setting, rl = config.train.shared_prefix, config.stage == "rl"
    if setting is True and not rl:
        raise ConfigError("train.shared_prefix: true, but stage=sft has one answer a prompt; leave it at auto.")
    return rl and setting is not False


def share_where_possible(policy: Policy, config: RunConfig) -> str:
    """Have a policy share prefixes if its attention can; one line of the log says whether it does and why.

    Returns:
        Which model cannot, and why; "" where it does.

    Raises:
        ConfigError: it cannot and the setting insists.
    """
    dtype = compute_dtype(config.model, policy.device)
    reason = why_not(policy.model.text_model, policy.device, dtype)
    if not reason:
        policy.share_prefixes()
        how = f"full attention by sdpa, in {dtype} on {policy.device.type}"
        log.info("train.shared_prefix: a group's prompt runs once in %s: %s", policy.source, how)
        return ""
    if config.train.shared_prefix is True:
        raise ConfigError(f"train.shared_prefix: true, but {policy.source} cannot: {reason}. Take auto or false.")
    log.warning("train.shared_prefix: a prompt runs once a rollout in %s: %s", policy.source, reason)
    return f"{policy.source}: {reason}"


def confirm(run: Run, groups: Sequence[RolloutGroup]) -> None:
    """Compare the policy's shared with its plain scores of a few rollouts, once a start. All ranks call it.

    Attention is compared by itself too, gradients included, since what is learned hangs on these.

    Raises:
        VisdError: on all ranks, if the two differ on one by more than rounding does.
    """
    policy = run.policy
    if not policy.shares_prefixes or policy.sharing_confirmed:
        return
    features = policy.encode([group.prompt for group in groups[:2]])
    rows = [
        policy.row(group.prompt, rollout, feature)
        for group, feature in zip(groups[:2], features, strict=True)
        for rollout in group.rollouts[:2]
    ]
    with run.backend.whole_weights():
        gaps = gaps_of(run, policy, rows)
    found = torch.tensor([gaps.scores, gaps.kernel, len(rows)], dtype=torch.float64)
    scores, kernel, compared = run.backend.all_reduce(found, "max").tolist()
    check_gaps(replace(gaps, scores=scores, kernel=kernel), rows)
    policy.sharing_confirmed = compared > 0


def confirm_teacher(run: Run, policy: Policy, rows: Sequence[Row]) -> None:
    """The same for an external teacher, which every rank holds whole: two of its rows of each of two samples.

    Raises:
        VisdError: as `confirm`, on this rank.
    """
    if not policy.shares_prefixes or policy.sharing_confirmed or not rows:
        return
    by_sample: dict[str, list[Row]] = {}
    for row in rows:
        by_sample.setdefault(row.prompt.sample_id, []).append(row)
    few = [row for same in list(by_sample.values())[:2] for row in same[:2]]
    check_gaps(gaps_of(run, policy, few), few)
    policy.sharing_confirmed = True


@dataclass(frozen=True)
class Gaps:
    """How shared and plain forwards differ."""

    dtype: torch.dtype  # of activations
    scores: float  # nats, mean absolute difference of log-probabilities
    kernel: float  # attention's outputs and gradients, relative


def gaps_of(run: Run, policy: Policy, rows: Sequence[Row]) -> Gaps:
    """On rows, in micro-batches of the run's budget, and of attention by itself."""
    kind = policy.device.type
    weights = policy.model.hf.get_input_embeddings().weight.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights
    scores = score_gap(policy, rows, run.config.rollout.temperature, run.config.train.micro_batch_tokens)
    return Gaps(dtype, scores, kernel_gap(policy.device, dtype))


def check_gaps(gaps: Gaps, rows: Sequence[Row]) -> None:
    """Raise a VisdError if they are more than rounding."""
    scores, kernel = LARGEST_GAP[gaps.dtype], LARGEST_KERNEL_GAP[gaps.dtype]
    if not (gaps.scores <= scores and gaps.kernel <= kernel):  # NaN is a difference
        names = ", ".join(sorted({row.prompt.sample_id for row in rows})) or "another rank"
        raise VisdError(
            f"train.shared_prefix: shared and plain forwards disagree in {gaps.dtype}: log-probabilities by "
            f"{gaps.scores:.2g} nats on average (at most {scores:g}; samples of {names}), attention by {gaps.kernel:.2g} "
            f"(at most {kernel:g}). Set train.shared_prefix=false, and report the model and the versions of torch and "
            "transformers."
        )


@torch.no_grad()
def score_gap(policy: Policy, rows: Sequence[Row], temperature: float, budget: int) -> float:
    """Mean absolute difference of the rows' log-probabilities, nats, with shared prefixes and without; 0 without rows."""
    difference, tokens = 0.0, 0
    shared, plain = (sampled_logp(policy, rows, temperature, budget, how) for how in (True, False))
    for one, other in zip(shared, plain, strict=True):
        difference += float((one - other).abs().sum(dtype=torch.float64))
        tokens += len(one)
    return difference / max(tokens, 1)


def sampled_logp(
    policy: Policy, rows: Sequence[Row], temperature: float, budget: int, shared: bool
) -> list[torch.Tensor]:
    """Log-probabilities [T_i] of each row's response, in micro-batches of at most `budget` tokens."""
    plan = plan_rows(rows, budget, lambda i: f"a rollout of sample {rows[i].prompt.sample_id!r}", shared)
    found: dict[int, torch.Tensor] = {}
    for batch in plan.batches:
        part = [rows[i] for i in batch]
        scores = policy.score(part, temperature=temperature, needs=ScoreNeeds(), shared=shared)
        found |= {i: scores.logp[b, : len(rows[i].response_ids)] for b, i in enumerate(batch)}
    return [found[i] for i in range(len(rows))]
