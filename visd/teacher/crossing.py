"""A teacher with another tokenizer: aligned units of text, and its scores in terms of the student's tokens.

The one place where a teacher scores text that was tokenised again: its vocabulary has no ids of the student's, so the
rollout's text is given to its own tokenizer. Units are the smallest stretches of text that both tokenizers cut out whole
(SimCT, arXiv 2605.07711, theorem 1; TRL's GOLD closes the same groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from visd.config import ConfigError
from visd.rollout.sampling import token_pieces
from visd.types import Rollout, TokenScores, UnitNeeds


@dataclass(frozen=True)
class Unit:
    """A stretch of text as both tokenizers cut it: tokens [s0, s1) of the student and [t0, t1) of the teacher."""

    s0: int
    s1: int
    t0: int
    t1: int

    @property
    def single(self) -> bool:
        return self.s1 - self.s0 == 1 and self.t1 - self.t0 == 1


def align(student: Sequence[str], teacher: Sequence[str]) -> list[Unit]:
    """The minimal units of two cuts of one text.

    A token whose piece is empty belongs with the next one: its bytes are the beginning of a character.

    Args:
        student, teacher: the text of each token; both concatenate to the same text.
    """
    ends = [list(accumulate(map(len, pieces))) for pieces in (student, teacher)]
    units, s0, t0, s, t, closed = [], 0, 0, 0, 0, 0
    while s < len(student) and t < len(teacher):
        mine, theirs = ends[0][s], ends[1][t]
        if mine == theirs and mine > closed:
            units.append(Unit(s0, s + 1, t0, t + 1))
            s, t = s + 1, t + 1
            s0, t0, closed = s, t, mine
        elif mine < theirs or (mine == theirs and s - s0 <= t - t0):
            s += 1
        else:
            t += 1
    return units


def merged_with_following(units: Sequence[Unit], matched: Sequence[bool]) -> list[Unit]:
    """Coarser units as SimCT's released code makes them: what does not match is merged with the next match.

    Args:
        matched: which units are one and the same token on both sides; what follows the last of these is left out.
    """
    merged: list[Unit] = []
    waiting: Unit | None = None
    for unit, match in zip(units, matched, strict=True):
        whole = unit if waiting is None else Unit(waiting.s0, unit.s1, waiting.t0, unit.t1)
        waiting = None if match else whole
        if match:
            merged.append(whole)
    return merged


@dataclass(frozen=True)
class Crossing:
    """Two vocabularies and what they share."""

    tokenizer: Any  # the teacher's
    student_end: int  # the student's end of a turn
    teacher_end: int  # the teacher's, which is taken for the same token
    student_ids: Tensor  # [S] long, ids of tokens that both know, the ends of a turn among them
    teacher_ids: Tensor  # [S] long, the same tokens at the teacher
    student_size: int  # ids of the student's output

    @classmethod
    def of(
        cls,
        student_tokenizer: Any,
        teacher_tokenizer: Any,
        ends: tuple[int, int],
        student_banned: Tensor,
        teacher_banned: Tensor,
    ) -> Crossing:
        """Match the tokens of two tokenizers by their strings, with the word mark of byte-level BPE as SentencePiece's.

        Args:
            ends: the id that ends a turn, of student and teacher.
            student_banned, teacher_banned: [V] bool, ids that cannot be sampled.

        Raises:
            ConfigError: the vocabularies have nothing in common.
        """
        banned, other_banned = student_banned.tolist(), teacher_banned.tolist()
        theirs: dict[str, int] = {}
        for token, other in sorted(teacher_tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if other < len(other_banned) and not other_banned[other] and other != ends[1]:
                theirs.setdefault(token.replace("Ġ", "▁"), other)
        pairs = {ends[0]: ends[1]}
        for token, id_ in student_tokenizer.get_vocab().items():
            if id_ < len(banned) and not banned[id_] and id_ != ends[0] and (name := token.replace("Ġ", "▁")) in theirs:
                pairs[id_] = theirs[name]
        if len(pairs) == 1:
            raise ConfigError("teacher.path: the teacher's tokenizer shares no token with the student's; take another.")
        ids = sorted(pairs)
        return cls(
            teacher_tokenizer, *ends, torch.tensor(ids), torch.tensor([pairs[i] for i in ids]), len(student_banned)
        )

    def response(self, rollout: Rollout) -> list[int] | None:
        """The teacher's ids for a rollout's text and end; None where its tokenizer cannot write the text as it is."""
        ids = self.tokenizer(rollout.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if "".join(self._pieces(ids)) != rollout.text:
            return None
        return [*ids, self.teacher_end] if self._ended(rollout) else ids

    def units(self, rollout: Rollout, ids: Sequence[int], alignment: str) -> tuple[list[Unit], list[bool]]:
        """Aligned units of a rollout and its teacher ids, and which of them are one token that both know."""
        end = self._ended(rollout)
        cut = len(rollout.token_ids) - end, len(ids) - end
        units = align(rollout.pieces[: cut[0]], self._pieces(ids[: cut[1]]))
        if end:
            units.append(Unit(cut[0], cut[0] + 1, cut[1], cut[1] + 1))
        known = dict(zip(self.student_ids.tolist(), self.teacher_ids.tolist(), strict=True))
        matched = [u.single and known.get(rollout.token_ids[u.s0]) == ids[u.t0] for u in units]
        if alignment == "following":
            units = merged_with_following(units, matched)
            matched = [unit.single for unit in units]
        return units, matched

    def in_students_terms(
        self, scores: TokenScores, rollout: Rollout, ids: Sequence[int], needs: UnitNeeds
    ) -> TokenScores:
        """The teacher's scores of its own tokens [T', ...] at the student's tokens [T, ...].

        Everything stands at the first token of each unit and is 0 elsewhere: `full_logp` as `rows_at` lays it out,
        `logp` the unit's score by `unit_scores`, `logp_rest` the log-probability of the unit's later tokens.
        """
        assert scores.full_logp is not None
        device = scores.logp.device
        units, matched = self.units(rollout, ids, needs.alignment)
        length = len(rollout.token_ids)
        number = torch.zeros(length, dtype=torch.long)
        for n, (unit, match) in enumerate(zip(units, matched, strict=True), start=1):
            number[unit.s0 : unit.s1] = n if match else -n
        at, first = (torch.tensor([getattr(u, name) for u in units], dtype=torch.long) for name in ("s0", "t0"))
        owner = torch.zeros(len(ids), dtype=torch.long)
        for n, unit in enumerate(units, start=1):
            owner[unit.t0 : unit.t1] = n
        score, rest = unit_scores(scores.logp, scores.log_z, owner.to(device), first.to(device))
        rows = self.rows_at(scores.full_logp[first.to(device)], needs.beyond)

        def placed(values: Tensor) -> Tensor:
            out = values.new_zeros((length, *values.shape[1:]))
            out[at.to(device)] = values
            return out

        return TokenScores(logp=placed(score), full_logp=placed(rows), units=number.to(device), logp_rest=placed(rest))

    def rows_at(self, full_logp: Tensor, beyond: bool) -> Tensor:
        """[N, V'] in the teacher's order to [N, V]: the student's ids, -inf for what the teacher does not know.

        Args:
            beyond: append a column for each id that only the teacher knows.
        """
        rows = full_logp.new_full((len(full_logp), self.student_size), -torch.inf)
        rows[:, self.student_ids.to(rows.device)] = full_logp[:, self.teacher_ids.to(rows.device)]
        if not beyond:
            return rows
        others = torch.ones(full_logp.shape[-1], dtype=torch.bool)
        others[self.teacher_ids] = False
        return torch.cat([rows, full_logp[:, others.to(rows.device)]], dim=-1)

    def _pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        return token_pieces(ids, lambda part: self.tokenizer.decode(part, skip_special_tokens=False)) if ids else ()

    def _ended(self, rollout: Rollout) -> int:
        return int(rollout.stop_reason == "eos")


def unit_scores(logp: Tensor, log_z: Tensor | None, owner: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The score of each unit, [N], and the log-probability of its tokens after the first, [N].

    The score is the mean log-probability of its tokens (SimCT, eq. 7). With `log_z`, the log-normalisers of the logits, it is
    the mean of raw logits, less the first position's normaliser, so that it stands beside log-probabilities there.

    Args:
        logp: of the tokens, [T].
        owner: number of the unit each token belongs to from 1, 0 for none, [T].
        first: first token of each unit, [N].
    """
    values = logp if log_z is None else logp + log_z
    sums, counts, plain = (
        x.new_zeros(len(first) + 1).index_add(0, owner, x)[1:] for x in (values, torch.ones_like(values), logp)
    )
    score = sums / counts.clamp(min=1)
    return (score if log_z is None else score - log_z[first]), plain - logp[first]
