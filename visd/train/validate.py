"""Evaluation on held-out questions while training, and the best weights so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from visd.observe.accumulate import Metrics, reduce
from visd.policy.oom import memory_of
from visd.reward.combine import score
from visd.seeding import derive_seed
from visd.train.checkpoint import write_json
from visd.train.run import Best, Run
from visd.train.state import export_model
from visd.types import Prompt, Rollout, Sample


def validate_if_due(run: Run) -> Metrics:
    """`validation/...` of this rank every `validation.every` steps and after the last one. All ranks call it.

    A question that cannot be asked counts as answered wrongly.
    """
    section, metrics = run.config.validation, Metrics()
    if not section.every or (run.step % section.every and run.step != run.config.train.steps):
        return metrics
    with run.timer.phase("validation"):
        run.sync_engine()
        run.policy.forget_features()  # kept for the next step, whose samples may have the ids of other questions here
        together = run.config.train.prompts_per_step
        with run.sampling_weights():
            for start in range(0, len(run.questions), together):
                add_answers(run, run.questions[start : start + together], metrics)
        run.engine.rest()
        keep_best(run, metrics)
    return metrics


def add_answers(run: Run, samples: Sequence[Sample], metrics: Metrics) -> None:
    """Ask this rank's share of some questions and add what the answers are worth."""
    own = samples[run.backend.rank :: run.backend.world_size]
    with run.backend.together():
        run.builder.prefetch(sample.question() for sample in own)
        pairs = run.prompts(own)
    rollouts = answers(run, [prompt for _, prompt in pairs])
    run.policy.forget_features()
    texts = {sample.id: rollout.own_text for (sample, _), rollout in zip(pairs, rollouts, strict=True)}
    for sample in own:
        rewards = score(sample, texts.get(sample.id, ""), run.config.reward, progress=1.0)
        metrics.mean("validation/accuracy", [rewards.accuracy])
        metrics.mean(f"validation/accuracy_{sample.answer.type}", [rewards.accuracy])
        metrics.mean("validation/correct", [float(rewards.correct)])
        metrics.mean("validation/format", [rewards.parts["format"] or 0.0])
        metrics.mean("validation/dropped", [float(sample.id not in texts)])
    metrics.mean("validation/length_mean", [float(rollout.length) for rollout in rollouts])
    metrics.mean("validation/truncated", [float(rollout.stop_reason == "length") for rollout in rollouts])


def answers(run: Run, prompts: Sequence[Prompt]) -> list[Rollout]:
    """One greedy answer a prompt."""
    greedy = replace(run.sampling, n=1, temperature=1.0, top_p=1.0, top_k=0, greedy=True)
    seeds = [[derive_seed("validation", run.config.run.seed, prompt.sample_id)] for prompt in prompts]
    with memory_of("validation", (prompt.sample_id for prompt in prompts)):
        return [rollout for (rollout,) in run.engine.generate(prompts, greedy, seeds, run.policy_version)]


def keep_best(run: Run, metrics: Metrics) -> None:
    """Remember the best accuracy over all ranks, and write its weights. All ranks call it; a tie keeps the earlier one."""
    accuracy = reduce(metrics, run.backend.all_gather_object)["validation/accuracy"]
    if run.best is not None and accuracy <= run.best.accuracy:
        return
    run.best = Best(run.step, accuracy)
    if run.config.validation.keep_best:
        folder = run.dir / "best"
        export_model(run, folder)
        if run.backend.is_main:
            write_json(folder / "validation.json", asdict(run.best))
        run.backend.barrier()
