"""Asks a policy every question and scores the answers, by the code that training uses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from eval.asking import Builder, build_all
from eval.results import Attempt, EvalResult, QuestionResult, summarise
from visd.config import RewardSection
from visd.reward.combine import score
from visd.rollout.base import RolloutEngine, Sampling
from visd.seeding import derive_seed
from visd.types import DroppedSample, Prompt, Rollout, Sample


@dataclass
class Asking:
    """How each question is asked."""

    samples: int = 4  # sampled answers a question; 0 asks only greedily
    greedy: bool = True  # also decode greedily once
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 takes all
    max_new_tokens: int = 768
    batch_prompts: int = 16  # questions generated together
    seed: int = 0  # of the sampled tokens and the intervals


def evaluate(
    engine: RolloutEngine,
    builder: Builder,
    samples: Sequence[Sample],
    asking: Asking,
    reward: RewardSection,
    on_result: Callable[[QuestionResult], None] | None = None,
    forget: Callable[[], None] | None = None,
) -> EvalResult:
    """Ask and sum up.

    Args:
        on_result: called with each result as soon as it is there.
        forget: called after each batch, to free what the engine keeps of its prompts.
    """
    results = []
    for result in ask(engine, builder, samples, asking, reward, forget=forget):
        results.append(result)
        if on_result is not None:
            on_result(result)
    return summarise(results, asking.seed)


def ask(
    engine: RolloutEngine,
    builder: Builder,
    samples: Sequence[Sample],
    asking: Asking,
    reward: RewardSection,
    *,
    done: Collection[str] = (),
    forget: Callable[[], None] | None = None,
) -> Iterator[QuestionResult]:
    """One result a sample whose id is not in `done`, in order."""
    waiting = [sample for sample in samples if sample.id not in done]
    size = asking.batch_prompts
    for start in range(0, len(waiting), size):
        builder.prefetch(sample.question() for sample in waiting[start : start + 2 * size])
        yield from _batch(engine, builder, waiting[start : start + size], asking, reward)
        if forget is not None:
            forget()


def _batch(
    engine: RolloutEngine, builder: Builder, samples: Sequence[Sample], asking: Asking, reward: RewardSection
) -> list[QuestionResult]:
    built, drops = build_all(builder, [sample.question() for sample in samples])
    prompts = list(built.values())
    greedy = _generate(engine, prompts, asking, 1, True) if asking.greedy else [()] * len(prompts)
    sampled = _generate(engine, prompts, asking, asking.samples, False) if asking.samples else [()] * len(prompts)
    answers = {name: (one, many) for name, one, many in zip(built, greedy, sampled, strict=True)}
    return [
        _dropped(sample, drops[sample.id], asking, reward)
        if sample.id in drops
        else _answered(sample, *answers[sample.id], reward)
        for sample in samples
    ]


def _generate(
    engine: RolloutEngine, prompts: Sequence[Prompt], asking: Asking, n: int, greedy: bool
) -> list[tuple[Rollout, ...]]:
    if not prompts:
        return []
    sampling = Sampling(n, asking.temperature, asking.top_p, asking.top_k, asking.max_new_tokens, greedy)
    seeds = [[derive_seed("eval", asking.seed, prompt.sample_id, g) for g in range(n)] for prompt in prompts]
    return engine.generate(prompts, sampling, seeds, policy_version=0)


def _answered(
    sample: Sample, greedy: Sequence[Rollout], sampled: Sequence[Rollout], reward: RewardSection
) -> QuestionResult:
    def attempts(rollouts: Sequence[Rollout]) -> tuple[Attempt, ...]:
        return tuple(
            _attempt(sample, r.own_text, reward, r.seed, r.stop_reason == "length", r.length) for r in rollouts
        )

    return QuestionResult(
        sample.id, sample.family, sample.answer.type, sample.answer.value, attempts(greedy), attempts(sampled)
    )


def _dropped(sample: Sample, drop: DroppedSample, asking: Asking, reward: RewardSection) -> QuestionResult:
    nothing = _attempt(sample, "", reward, 0, False, 0)
    return QuestionResult(
        sample.id,
        sample.family,
        sample.answer.type,
        sample.answer.value,
        (nothing,) if asking.greedy else (),
        (nothing,) * asking.samples,
        dropped=drop.reason,
        message=str(drop),
    )


def _attempt(sample: Sample, text: str, reward: RewardSection, seed: int, truncated: bool, tokens: int) -> Attempt:
    rewards = score(sample, text, reward, progress=1.0)
    return Attempt(text, seed, rewards.accuracy, rewards.correct, dict(rewards.parts), truncated, tokens)
