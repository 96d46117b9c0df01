"""One optimiser step: student forwards in micro-batches, credit, loss, backward, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from visd.methods.base import Scores, StepView
from visd.objective.loss import Denominators, kl_to_reference, policy_loss, token_weights, truncated_ratio
from visd.objective.overlap import overlap, overlap_k
from visd.observe.accumulate import Metrics
from visd.observe.metrics import token_metrics
from visd.observe.records import TokenTrace, TraceKey, token_traces
from visd.policy.oom import memory_of
from visd.train.batches import Item, dummy_row, join_scores, scores_of_own, token_batch
from visd.train.diagnose import context_metrics, magnitude_metrics
from visd.train.dynamic import mini_batches
from visd.train.optimizer import learning_rate
from visd.train.plan import plan_rows
from visd.train.run import Run
from visd.train.teach import RowScores, items_of
from visd.types import RolloutGroup, ScoreNeeds, TokenBatch, TokenScores, VisdError


@dataclass
class Update:
    """What a step did."""

    made: int  # updates that changed the weights; less than objective.mini_batches where gradients were not finite
    metrics: Metrics  # of this rank
    traces: dict[TraceKey, TokenTrace]  # of the rollouts that were trained on


def update_policy(
    run: Run,
    groups: Sequence[RolloutGroup],
    teacher: RowScores,
    reference: RowScores,
    step: int,
    old: RowScores | None = None,
) -> Update:
    """Update the weights once, or once for each of `objective.mini_batches`.

    Args:
        old: log-probabilities that ratios are taken to, for `objective.old_logp=start`.
    """
    metrics = Metrics()
    by_key = {(group.sample.id, i): r for group in groups for i, r in enumerate(group.rollouts)}
    seen = {key: scores_of_own(scores, by_key[key]) for key, scores in teacher.items()}
    for name, value in run.method.observe(StepView(groups, seen, run.backend.all_gather_object), step).items():
        metrics.max(f"method/{name}", value)
    metrics.update(context_metrics(run, groups, teacher))
    metrics.update(run.ahead.take_agreement())
    if run.config.rollout.max_staleness:
        sampled = [rollout for rollout in by_key.values() if rollout.source == "policy"]
        metrics.mean("rollout/staleness", (run.policy_version - rollout.policy_version for rollout in sampled))
    update = Update(0, metrics, {})
    for part in mini_batches(run, groups):
        one_update(run, part, teacher, reference, old or {}, step, update)
    return update


def one_update(
    run: Run,
    groups: Sequence[RolloutGroup],
    teacher: RowScores,
    reference: RowScores,
    old: RowScores,
    step: int,
    update: Update,
) -> None:
    """Accumulate the gradient of some groups over all micro-batches of all ranks, then update once; adds to `update`."""
    items = items_of(run, groups)
    rows = [item.row() for item in items]
    run.meter.trained(run.policy, rows)
    plan = plan_rows(
        rows,
        run.config.train.micro_batch_tokens,
        lambda i: f"rollout {items[i].index} of sample {items[i].group.sample.id!r}",
        run.policy.shares_prefixes,
    )
    denominators = count(run, groups)
    rounds = max_over_ranks(run, len(plan.batches))
    update.metrics.sum("update/tokens", plan.tokens)
    update.metrics.sum("update/repeated_tokens", plan.repeated)
    if run.unshared and not run.policy.shares_prefixes:
        update.metrics.sum("update/unshared_rollouts", len(items))
    run.policy.set_training(True)
    for i in range(rounds):
        last = i == rounds - 1
        if i < len(plan.batches):
            part = [items[row] for row in plan.batches[i]]
            with memory_of("update", (item.group.sample.id for item in part)):
                update.traces |= micro_step(
                    run, part, teacher, reference, old, denominators, step, last, update.metrics
                )
        else:
            idle_step(run, last)
    run.policy.set_training(False)
    if not update.made:  # later ones are of a policy that has moved on
        check_agreement(run, update.metrics)
    update.made += not optimizer_step(run, step, update.metrics)


def optimizer_step(run: Run, step: int, metrics: Metrics) -> bool:
    """Update the weights at the step's learning rate; True where gradients were not finite and nothing was updated."""
    lr = learning_rate(run.config.optim, step, run.config.train.steps)
    with memory_of("optimizer"):
        result = run.backend.step(lr)
    metrics.max("optim/lr", lr)
    metrics.max("optim/grad_norm", result.grad_norm)
    metrics.max("optim/skipped", float(result.skipped))
    return result.skipped


def count(run: Run, groups: Sequence[RolloutGroup]) -> Denominators:
    """Tokens and rollouts of an update; a rollout without gradient counts as much as any other."""
    tokens = sum(rollout.length for group in groups for rollout in group.rollouts)
    rollouts = sum(len(group.rollouts) for group in groups)
    total = run.backend.all_reduce(torch.tensor([tokens, rollouts], dtype=torch.float64))
    return Denominators(int(total[0]), int(total[1]), run.config.rollout.max_new_tokens)


def max_over_ranks(run: Run, number: int) -> int:
    """Every rank makes as many forwards as the busiest one, and at least one."""
    return max(1, int(run.backend.all_reduce(torch.tensor(float(number)), "max")))


def idle_step(run: Run, last: bool) -> None:
    """A forward and backward that add exactly nothing."""
    row = dummy_row(run.policy.eos_ids[0])
    scores = run.policy.score([row], temperature=1.0, needs=ScoreNeeds(sampled=True), forward=run.backend.forward)
    run.backend.backward(scores.logp.sum() * 0.0, last=last)


def micro_step(
    run: Run,
    items: Sequence[Item],
    teacher: RowScores,
    reference: RowScores,
    old: RowScores,
    denominators: Denominators,
    step: int,
    last: bool,
    metrics: Metrics,
) -> dict[TraceKey, TokenTrace]:
    """Forward, credit, loss and backward of one micro-batch."""
    objective = run.config.objective
    batch = token_batch(items, [item.key in teacher for item in items], run.backend.device)
    width = batch.mask.shape[1]
    taught = join_scores([teacher.get(item.key) for item in items], width)
    needs = run.method.needs(step)
    student = run.policy.score(
        [item.row() for item in items],
        temperature=run.config.rollout.temperature,
        needs=ScoreNeeds(
            entropy=True,
            full=taught is not None and bool(needs and needs.full),
            log_z=taught is not None and bool(needs and needs.log_z),
            overlap_k=overlap_k(needs, run.config.teacher.overlap_k) if taught is not None else 0,
        ),
        support_ids=taught.support_ids if taught is not None else None,
        forward=run.backend.forward,
    )
    scores = Scores(student=student.detach(), teacher=taught)
    credit = run.method.advantages(batch, scores, step)
    weights = token_weights(batch.mask, objective.aggregation, denominators)
    old_logp = scores.student.logp if objective.old_logp == "detached" else batch.engine_logp
    if objective.old_logp == "start":
        start = join_scores([old[item.key] for item in items], width)
        assert start is not None
        old_logp = start.logp
    drift = truncated_ratio(student.logp, batch.engine_logp, objective.importance_cap)
    policy = policy_loss(student.logp, old_logp, credit.advantages, weights * drift.value, objective)
    loss = policy.loss
    if objective.importance_cap:
        metrics.mean("engine/importance", drift.value[batch.mask].tolist())
        metrics.mean("engine/importance_cut", drift.clipped[batch.mask].float().tolist())
    if run.reference is not None:
        known = join_scores([reference[item.key] for item in items], width)
        assert known is not None
        kl = kl_to_reference(student.logp, known.logp)
        loss = loss + objective.kl_weight * (kl * weights).sum()
        metrics.mean("policy/kl_reference", kl.detach()[batch.mask].tolist())
    terms = run.method.terms(batch, Scores(student, taught), step)
    for name, term in terms.items():
        loss = loss + term.weight * (term.value * weights * term.mask).sum()
        counted = term.mask & batch.mask
        metrics.mean(f"term/{name}", term.value.detach()[counted].tolist())
        if term.clipped is not None:
            metrics.mean(f"term/{name}_clip_share", term.clipped[counted].float().tolist())
        for measure, values in term.measures.items():
            metrics.mean(f"term/{name}_{measure}", values[counted].double().tolist())
    check_finite(run, loss, [item.group.sample.id for item in items])
    run.backend.backward(loss, last=last)

    same_tokens = taught if needs is not None and needs.units is None else None
    fresh = all(item.rollout.policy_version == run.policy_version for item in items)
    metrics.update(token_metrics(batch, credit, scores.student, same_tokens, fresh))
    if taught is not None:
        metrics.update(magnitude_metrics(batch, credit, list(terms.values()), weights))
    if same_tokens is not None and needs is not None and run.config.teacher.overlap_k:
        metrics.update(overlap_metrics(batch, scores.student, same_tokens, needs, run.config.teacher.overlap_k))
    metrics.sum("loss", loss.item())
    metrics.mean("policy/clip_share", policy.clipped[batch.mask].float().tolist())
    if objective.old_logp != "detached":
        ratios = policy.ratio[batch.mask]
        metrics.mean("policy/ratio_mean", ratios.tolist())
        metrics.max("policy/ratio_max", *ratios.tolist())
    return token_traces(batch, credit, scores.student)


def overlap_metrics(
    batch: TokenBatch, student: TokenScores, teacher: TokenScores, needs: ScoreNeeds, k: int
) -> Metrics:
    """`overlap/...`, means over the tokens that the teacher scored; the advantage over those with common ids."""
    metrics = Metrics()
    found = overlap(student, teacher, needs, k)
    for name, values in vars(found).items():
        counted = batch.taught & values.isfinite()
        metrics.mean(f"overlap/{name}", values[counted].double().tolist())
    return metrics


def check_agreement(run: Run, metrics: Metrics) -> None:
    """Before the weights change: an engine that samples from another distribution than the trainer's stops the run."""
    limit = run.config.rollout.max_mismatch
    if not limit:
        return
    own = metrics.values().get("engine/logp_diff_mean", 0.0)
    worst = run.backend.all_reduce(torch.tensor(own, dtype=torch.float64), "max").item()
    if not worst <= limit:
        raise VisdError(
            f"step {run.step + 1}: log-probabilities of engine and trainer differ by {worst:.3g} nats on the mean, "
            f"rollout.max_mismatch allows {limit:g}. The engine has other weights, positions or pixels than the trainer, "
            "or computes in a much coarser dtype: compare with rollout=transformers, or raise the limit."
        )


def check_finite(run: Run, loss: torch.Tensor, sample_ids: Sequence[str]) -> None:
    """A loss that is not a number stops the run before it reaches the weights."""
    if not torch.isfinite(loss):
        raise VisdError(
            f"step {run.step + 1}: the loss is {loss.item()} in a micro-batch with samples {', '.join(sorted(set(sample_ids)))}. "
            "Look at these samples and at the model's weights; lower optim.lr if the run was diverging."
        )
