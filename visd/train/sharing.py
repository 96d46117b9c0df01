"""Whether a run shares prefixes, and the comparison with rows by themselves before it first does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from visd.policy.attention import kernel_gap, why_not
from visd.policy.batch import Row
from visd.policy.policy import Policy
from visd.train.plan import plan_rows
from visd.types import RolloutGroup, ScoreNeeds, VisdError

if TYPE_CHECKING:
    from visd.train.run import Run

log = logging.getLogger(__name__)

LARGEST_GAP = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest mean difference of log-probabilities, nats, that rounding explains, by dtype of activations."""

LARGEST_KERNEL_GAP = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest relative difference of attention's outputs and gradients, by dtype."""


def share_where_possible(policy: Policy, dtype: torch.dtype) -> str:
    """Have the policy share prefixes if its attention can; `dtype` is that of activations.

    Returns:
        Why it cannot; "" where it does.
    """
    reason = why_not(policy.model.text_model, policy.device, dtype)
    if reason:
        log.warning("train.shared_prefix: prompts run once a rollout, not once a group: %s", reason)
    else:
        policy.share_prefixes()
    return reason


def confirm(run: Run, groups: Sequence[RolloutGroup]) -> None:
    """Compare shared with plain scores of two rollouts of each of the first two groups, once a start. All ranks call it.

    Attention is compared by itself too, gradients included, since what is learned hangs on these.

    Raises:
        VisdError: on all ranks, if the two differ on one by more than rounding does.
    """
    if not run.policy.shares_prefixes or run.sharing_confirmed:
        return
    embeddings = run.policy.model.hf.get_input_embeddings()
    features = run.policy.encode([group.prompt for group in groups[:2]])
    rows = [
        Row(group.prompt, rollout.token_ids, feature)
        for group, feature in zip(groups[:2], features, strict=True)
        for rollout in group.rollouts[:2]
    ]
    device = run.backend.device
    with run.backend.whole_weights():
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else embeddings.weight.dtype
        gap = score_gap(run.policy, rows, run.config.rollout.temperature, run.config.train.micro_batch_tokens)
        found = torch.tensor([gap, kernel_gap(device, dtype), len(rows)], dtype=torch.float64)
    gap, kernel, compared = run.backend.all_reduce(found, "max").tolist()
    limits = LARGEST_GAP[dtype], LARGEST_KERNEL_GAP[dtype]
    if not (gap <= limits[0] and kernel <= limits[1]):
        names = ", ".join(sorted({row.prompt.sample_id for row in rows})) or "another rank"
        raise VisdError(
            f"train.shared_prefix: shared and plain forwards disagree in {dtype}: log-probabilities by {gap:.2g} nats "
            f"on average (at most {limits[0]:g}; samples of {names}), attention by {kernel:.2g} (at most {limits[1]:g}). "
            "Set train.shared_prefix=never, and report the model and the versions of torch and transformers."
        )
    run.sharing_confirmed = compared > 0


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
