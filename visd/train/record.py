"""What is written down after each step."""

from __future__ import annotations

from collections.abc import Sequence

from visd.objective.advantage import overlong
from visd.observe.accumulate import Metrics, reduce
from visd.observe.metrics import drop_metrics, group_metrics, key_frame_metrics, reduction_metrics
from visd.observe.records import rollout_records
from visd.observe.timing import time_metrics
from visd.train.run import Run
from visd.train.update import Update
from visd.types import RolloutGroup, Sample


def record_step(
    run: Run, groups: Sequence[RolloutGroup], update: Update, left_out: Sequence[RolloutGroup] = ()
) -> None:
    """Metrics of all ranks, the rollout dump, and now and then a table of one group. All ranks call it.

    Args:
        left_out: groups that were sampled and not trained on; accuracy, lengths and tokens cover them as well.
    """
    assert run.tracker is not None
    tracker, gather, step = run.tracker, run.backend.all_gather_object, run.step
    metrics = common_metrics(run, update.metrics, [group.sample for group in (*groups, *left_out)])
    metrics.update(objective_metrics(run, groups, left_out))
    groups = [*groups, *left_out]
    metrics.update(group_metrics(groups))
    if run.judge is not None and any(group.reports for group in groups):
        for name, value in run.judge.take_counts().items():
            metrics.sum(f"judge/{name}", value)
    reduced = reduce(metrics, gather)
    tracker.log_step(step, reduced)
    run.leaks.update(step, reduced)
    if tracker.wants_dump(step):
        records = [r for part in gather(rollout_records(step, groups, update.traces)) for r in part]
        tracker.dump(step, sorted(records, key=lambda r: r.sample_id))
    if tracker.wants_table(step) and groups:
        tracker.table(step, most_telling(groups))


def objective_metrics(run: Run, groups: Sequence[RolloutGroup], left_out: Sequence[RolloutGroup]) -> Metrics:
    """What dynamic sampling left out, and the penalty for length, where they are on."""
    metrics, objective = Metrics(), run.config.objective
    if objective.dynamic_sampling != "off":
        metrics.sum("group/trained", len(groups))
        metrics.sum("group/left_out", len(left_out))
    if objective.overlong_share > 0:
        rollouts = [rollout for group in (*groups, *left_out) for rollout in group.rollouts]
        longest, share = run.config.rollout.max_new_tokens, objective.overlong_share
        values = [overlong(rollout.length, longest, share) for rollout in rollouts]
        metrics.mean("reward/overlong", values)
        metrics.mean("reward/overlong_share", (value > 0 for value in values))
    return metrics


def common_metrics(run: Run, metrics: Metrics, samples: Sequence[Sample]) -> Metrics:
    """What every stage records: times, drops, decoding, key frames of the step's samples, teacher displacement."""
    seconds = run.timer.take()
    metrics.update(time_metrics(seconds))
    metrics.update(run.meter.take(seconds, run.ahead.prompts))
    metrics.update(drop_metrics(run.drops.reasons))
    metrics.update(reduction_metrics(run.reductions))
    if run.key_frames is not None:
        metrics.update(key_frame_metrics(samples))
    metrics.sum("media/videos_decoded", run.videos_decoded)
    metrics.sum("media/tower_calls", run.policy.tower_calls)
    metrics.max("policy/version", run.policy_version)
    if run.teacher is not None and run.method.active(run.step - 1):
        teacher, student = run.teacher.displacement(run.backend)
        metrics.max("teacher/displacement", teacher)
        metrics.max("student/displacement", student)
        if student > 0:
            metrics.max("teacher/displacement_ratio", teacher / student)
    return metrics


def most_telling(groups: Sequence[RolloutGroup]) -> RolloutGroup:
    """The group whose rollouts differ most."""
    return max(groups, key=lambda group: max((abs(a) for a in group.advantages), default=0.0))
