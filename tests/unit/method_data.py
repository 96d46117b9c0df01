"""Groups, batches and scores of a few tokens, for tests of methods by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visd.methods.base import Scores
from visd.types import (
    Answer,
    JudgeReport,
    Message,
    Prompt,
    Rewards,
    Rollout,
    RolloutGroup,
    Sample,
    ScoreNeeds,
    TokenBatch,
    TokenScores,
    VisionInputs,
)

P = (0.5, 0.3, 0.2)
Q = (0.2, 0.7, 0.1)
"""Student and teacher of the specification's three-token example."""


def gather(value: object) -> list[object]:
    """One rank."""
    return [value]


def sample_of(rationale: str | None = "look left", **fields: object) -> Sample:
    given: dict[str, object] = {"answer": Answer("word", "left"), "rationale": rationale} | fields
    return Sample(id="s", source="test", family="word", media=(), messages=(Message("user", "Which way?"),), **given)  # type: ignore[arg-type]


def group_of(
    correct: Sequence[float], sample: Sample | None = None, length: int = 4, feedback: str = "", text: str = "answer"
) -> RolloutGroup:
    """Rollout i says `<think>why i</think>text i` in pieces of one character, with accuracy `correct[i]`."""
    sample = sample or sample_of()
    empty = torch.zeros(0, dtype=torch.long)
    prompt = Prompt(sample.id, "", empty, empty.int(), empty.expand(4, 0), VisionInputs(), (), 0)
    said = [f"<think>why {i}</think>{text} {i}" for i in range(len(correct))]
    return RolloutGroup(
        sample=sample,
        prompt=prompt,
        rollouts=tuple(
            Rollout((0,) * length, (0.0,) * length, said[i], tuple(said[i]), "eos", i, 0) for i in range(len(correct))
        ),
        rewards=tuple(Rewards(c + 0.1, {"accuracy": c}, c >= 0.5, c) for c in correct),
        reports=tuple(JudgeReport("ok", feedback=feedback) for _ in correct) if feedback else (),
    )


def batch_of(
    ids_BT: Tensor,
    advantages: Sequence[float],
    *,
    group: RolloutGroup | None = None,
    mask: Tensor | None = None,
    has_teacher: Sequence[bool] | None = None,
    engine_logp: Tensor | None = None,
) -> TokenBatch:
    rows, width = ids_BT.shape
    group = group or group_of([1.0] * rows, length=width)
    return TokenBatch(
        token_ids=ids_BT,
        mask=torch.ones(rows, width, dtype=torch.bool) if mask is None else mask,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        engine_logp=torch.zeros(rows, width, dtype=torch.float64) if engine_logp is None else engine_logp,
        groups=[group] * rows,
        indices=list(range(rows)),
        has_teacher=torch.tensor([True] * rows if has_teacher is None else has_teacher),
        dimensions=torch.zeros(rows, width, dtype=torch.long),
        dimension_scores=torch.full((rows, 4), torch.nan),
    )


def logits_of(*probabilities: Sequence[float]) -> Tensor:
    """[1, T, V] in float64, with gradient, one distribution a token."""
    return torch.tensor([probabilities], dtype=torch.float64).log().requires_grad_()


def scores_of(student_BTV: Tensor, teacher_BTV: Tensor, ids_BT: Tensor, needs: ScoreNeeds | None) -> Scores:
    """What the policy would return for `needs` from given logits."""
    needs = needs or ScoreNeeds()
    p, q = student_BTV.log_softmax(-1), teacher_BTV.detach().log_softmax(-1)
    owner = p if needs.support == "student" else q
    support = owner.detach().topk(min(needs.top_k, p.shape[-1]), dim=-1).indices if needs.top_k else None

    def of(logp: Tensor) -> TokenScores:
        return TokenScores(
            logp=logp.gather(-1, ids_BT[..., None]).squeeze(-1),
            entropy=-(logp.exp() * logp).sum(-1).detach(),
            support_ids=support,
            support_logp=None if support is None else logp.gather(-1, support),
            full_logp=logp if needs.full else None,
        )

    return Scores(of(p), of(q))


def random_logits(seed: int, shape: tuple[int, ...], scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Student (with gradient) and teacher."""
    numbers = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, *shape, generator=numbers, dtype=torch.float64)).unbind(0)
    return student.clone().requires_grad_(), teacher.clone()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]
