"""What is kept of each rollout: one JSON-able record, with per-token reasons where a forward was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visd.types import DIMENSIONS, Rollout, RolloutGroup, Sample, TokenBatch, TokenCredit, TokenScores, VisdError

if TYPE_CHECKING:
    from torch import Tensor

TraceKey = tuple[str, int]
"""Sample id and rollout seed."""


@dataclass(frozen=True)
class TokenTrace:
    """Why each token of one rollout is weighted as it is. Lists run over its T tokens; None where not computed.

    A tool's tokens have advantage 0: nothing is learnt from them.
    """

    logp: list[float]  # student, at the sampling temperature
    weight: list[float]
    advantage: list[float]
    dimension: list[str]
    gap: list[float] | None = None  # D_t = log teacher - log student
    clipped: list[bool] | None = None


@dataclass(frozen=True)
class RolloutRecord:
    """One line of a rollout dump."""

    step: int
    sample_id: str
    family: str
    seed: int
    policy_version: int
    question: str
    media: list[str]  # paths below the data root
    clips: list[dict[str, Any]]  # one a medium: kind, start, end, fps
    answer: dict[str, Any]  # verified: type, value, options, tolerance
    evidence: dict[str, Any]  # windows, frames, boxes
    text: str
    stop_reason: str
    reward: float | None
    parts: dict[str, float | None]
    accuracy: float | None
    correct: bool | None
    report: dict[str, Any] | None  # judge: status, scores, feedback, spans
    advantage: float | None
    token_ids: list[int]
    pieces: list[str]
    engine_logp: list[float]
    frame_times: list[list[float]] = field(default_factory=list)  # s, one list a medium
    tokens: TokenTrace | None = None


def token_traces(batch: TokenBatch, credit: TokenCredit, student: TokenScores) -> dict[TraceKey, TokenTrace]:
    """The traces of a micro-batch's rows."""
    traces = {}
    advantages = credit.advantages * batch.mask
    for row, (group, index) in enumerate(zip(batch.groups, batch.indices, strict=True)):
        if not bool(batch.mask[row].any()):
            continue
        count = len(group.rollouts[index].token_ids)
        scored = bool(batch.has_teacher[row])
        gap = credit.log_ratio if scored else None
        clipped = credit.clipped if scored else None
        traces[(group.sample.id, group.rollouts[index].seed)] = TokenTrace(
            logp=_floats(student.logp[row, :count]),
            weight=_floats(credit.weights[row, :count]),
            advantage=_floats(advantages[row, :count]),
            dimension=[DIMENSIONS[i] for i in batch.dimensions[row, :count].tolist()],
            gap=None if gap is None else _floats(gap[row, :count]),
            clipped=None if clipped is None else [bool(c) for c in clipped[row, :count].tolist()],
        )
    return traces


def rollout_records(
    step: int, groups: Sequence[RolloutGroup], traces: Mapping[TraceKey, TokenTrace] | None = None
) -> list[RolloutRecord]:
    """One record a rollout, in order."""
    return [
        _record(step, group, index, (traces or {}).get((group.sample.id, rollout.seed)))
        for group in groups
        for index, rollout in enumerate(group.rollouts)
    ]


def _record(step: int, group: RolloutGroup, index: int, trace: TokenTrace | None) -> RolloutRecord:
    sample: Sample = group.sample
    rollout: Rollout = group.rollouts[index]
    reward = group.rewards[index] if group.rewards else None
    return RolloutRecord(
        step=step,
        sample_id=sample.id,
        family=sample.family,
        seed=rollout.seed,
        policy_version=rollout.policy_version,
        question="\n".join(message.content for message in sample.messages if message.role == "user"),
        media=[medium.path for medium in sample.media],
        clips=[{"kind": m.kind, "start": m.start, "end": m.end, "fps": m.fps} for m in sample.media],
        answer=asdict(sample.answer),
        evidence=asdict(sample.evidence),
        text=rollout.text,
        stop_reason=rollout.stop_reason,
        reward=reward.total if reward else None,
        parts=dict(reward.parts) if reward else {},
        accuracy=reward.accuracy if reward else None,
        correct=reward.correct if reward else None,
        report=asdict(group.reports[index]) if group.reports else None,
        advantage=group.advantages[index] if group.advantages else None,
        token_ids=list(rollout.token_ids),
        pieces=list(rollout.pieces),
        engine_logp=[round(value, 6) for value in rollout.logp],
        frame_times=[list(times) for times in group.prompt.frame_times],
        tokens=trace,
    )


def to_line(record: RolloutRecord) -> str:
    return json.dumps(record, default=vars, ensure_ascii=False)  # asdict would copy every number


def read_dump(path: Path) -> list[RolloutRecord]:
    """The records of a rollout dump.

    Raises:
        VisdError: a line is not a record.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            fields = json.loads(line)
            tokens = fields.pop("tokens")
            records.append(RolloutRecord(**fields, tokens=None if tokens is None else TokenTrace(**tokens)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise VisdError(f"{path}, line {number}: not a rollout record ({error}); delete the file.") from error
    return records


def _floats(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.detach().double().cpu().tolist()]
