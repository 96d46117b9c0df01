"""Supervised training on reasoning traces: the same prompts, masks, positions and backend as the RL loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from visd.data.targets import sft_target
from visd.judge.rule import RuleJudge
from visd.objective.loss import Denominators, token_weights
from visd.observe.accumulate import Metrics, reduce
from visd.policy.batch import Row
from visd.policy.oom import memory_of
from visd.seeding import generator
from visd.teacher.view import render, teacher_prompt, verified
from visd.train.loop import last_step, stop_asked
from visd.train.plan import micro_batches
from visd.train.record import common_metrics
from visd.train.run import Run
from visd.train.state import save_if_due
from visd.train.update import check_finite, idle_step, max_over_ranks, optimizer_step
from visd.train.validate import validate_if_due
from visd.types import JudgeReport, Prompt, Rollout, RolloutGroup, Sample, ScoreNeeds


@dataclass(frozen=True)
class Example:
    """A prompt and the tokens it should be answered with."""

    sample_id: str
    row: Row
    privileged: bool


def train_sft(run: Run) -> None:
    """Run the remaining supervised steps, then write the final checkpoint."""
    last = last_step(run)
    while run.step < last:
        step = run.step
        pairs = run.step_prompts(step)
        with run.timer.phase("encode"):
            examples = build_examples(run, pairs, step)
        with run.timer.phase("update"):
            metrics = update(run, examples, step)
        run.policy.forget_features()
        run.step += 1
        metrics.update(validate_if_due(run))
        assert run.tracker is not None
        metrics = common_metrics(run, metrics, [sample for sample, _ in pairs])
        run.tracker.log_step(run.step, reduce(metrics, run.backend.all_gather_object))
        last = stop_asked(run, last)
        save_if_due(run, last)


def build_examples(run: Run, pairs: Sequence[tuple[Sample, Prompt]], step: int) -> list[Example]:
    """One example a sample; a fixed share of the prompts carries privileged text and is answered with the truth."""
    features = run.policy.encode([prompt for _, prompt in pairs])
    examples = []
    for (sample, prompt), feature in zip(pairs, features, strict=True):
        chance = generator("privileged", run.config.run.seed, step, sample.id)
        privileged = bool(chance.random() < run.config.sft.privileged_share)
        if privileged:
            text = privileged_text(run, sample, prompt, feedback=bool(chance.random() < 0.5))
            prompt = teacher_prompt(run.processor, prompt, text)
        ids = run.processor.tokenizer.encode(sft_target(sample, verified=privileged), add_special_tokens=False)
        examples.append(Example(sample.id, Row(prompt, (*ids, run.policy.eos_ids[0]), feature), privileged))
    return examples


def privileged_text(run: Run, sample: Sample, prompt: Prompt, feedback: bool) -> str:
    """The truth about the sample, half the time with what a judge says of the annotator's trace."""
    said = None
    if feedback:
        trace = Rollout((), (), sft_target(sample), (), "eos", 0, 0)
        report: JudgeReport = RuleJudge().judge([RolloutGroup(sample, prompt, (trace,))])[0][0]
        said = report.feedback if report.usable else None
    teacher = run.config.teacher
    return render(verified(sample, said), run.config.sft.context, teacher.max_feedback_chars)


def update(run: Run, examples: Sequence[Example], step: int) -> Metrics:
    """Negative log-likelihood of the targets, mean over all target tokens of the step."""
    lengths = torch.tensor([sum(len(e.row.response_ids) for e in examples)], dtype=torch.float64)
    denominators = Denominators(int(run.backend.all_reduce(lengths)), rollouts=0, longest=0)
    run.meter.trained(run.policy, [example.row for example in examples])
    plan = micro_batches(
        [len(example.row) for example in examples],
        run.config.train.micro_batch_tokens,
        lambda i: f"sample {examples[i].sample_id!r} with its trace",
    )
    metrics = Metrics()
    rounds = max_over_ranks(run, len(plan))
    run.policy.set_training(True)
    for i in range(rounds):
        if i < len(plan):
            part = [examples[row] for row in plan[i]]
            with memory_of("update", (example.sample_id for example in part)):
                micro_step(run, part, denominators, i == rounds - 1, metrics)
        else:
            idle_step(run, i == rounds - 1)
    run.policy.set_training(False)
    run.policy_version += int(not optimizer_step(run, step, metrics))
    metrics.mean("sft/privileged_share", [float(example.privileged) for example in examples])
    return metrics


def micro_step(run: Run, examples: Sequence[Example], denominators: Denominators, last: bool, metrics: Metrics) -> None:
    """Forward and backward of one micro-batch."""
    rows = [example.row for example in examples]
    scores = run.policy.score(rows, temperature=1.0, needs=ScoreNeeds(sampled=True), forward=run.backend.forward)
    mask = torch.zeros_like(scores.logp, dtype=torch.bool)
    for b, row in enumerate(rows):
        mask[b, : len(row.response_ids)] = True
    loss = -(scores.logp * token_weights(mask, "token", denominators)).sum()
    check_finite(run, loss, [example.sample_id for example in examples])
    run.backend.backward(loss, last=last)
    metrics.sum("loss", loss.item())
