"""Answers in several turns: a layer over an engine that goes on from given ids, running the tools that are called.

An answer is one assistant turn. Where it closes a call, sampling stops, the tool's words are appended, and the answer goes
on after them; all answers that wait for their next turn are sampled together. What tools say is part of `token_ids`, of
`text` and of `pieces`, but `own` is False there: these tokens are neither trained on nor counted. Frames that a tool shows are
images in the answer, seen by every forward over it; the tower looks at them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from visd.config import ConfigError, build
from visd.media.answer import Showing, answer_media
from visd.media.processor import PromptProcessor
from visd.policy.batch import VisionFeatures, concatenate_features, response_positions
from visd.policy.policy import Policy, answer_key
from visd.rollout.base import Limits, RolloutEngine, Sampling
from visd.rollout.sampling import token_pieces
from visd.rollout.tools import CLOSE, RESULT, Calculator, Said, Tool, call
from visd.rollout.zoom import Zoom
from visd.seeding import derive_seed
from visd.types import AnswerMedia, Prompt, Rollout, StopReason

TOOLS = (Calculator.name, Zoom.name)
"""Those that `tools` may name."""


@dataclass
class Draft:
    """An answer so far."""

    prompt: Prompt  # the question's
    seed: int
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)  # 0 where a tool speaks
    pieces: list[str] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)  # of the calls
    shown: list[tuple[int, Showing]] = field(default_factory=list)  # frames, with the place of their turn in `ids`
    features: list[VisionFeatures] = field(default_factory=list)  # of `shown`
    stop: StopReason | None = None  # None while a turn is to follow

    def add(self, ids: Sequence[int], logp: Sequence[float], pieces: Sequence[str], own: bool) -> None:
        self.ids += ids
        self.logp += logp
        self.pieces += pieces
        self.own += [own] * len(ids)

    def rollout(self, policy_version: int, media: AnswerMedia | None) -> Rollout:
        assert self.stop is not None
        return Rollout(
            token_ids=tuple(self.ids),
            logp=tuple(self.logp),
            text="".join(self.pieces),
            pieces=tuple(self.pieces),
            stop_reason=self.stop,
            seed=self.seed,
            policy_version=policy_version,
            own=() if all(self.own) else tuple(self.own),
            calls=tuple(self.outcomes),
            media=media,
        )


@dataclass
class TurnsEngine(RolloutEngine):
    """Settings of answers with tools. `rollout.max_new_tokens` bounds the policy's own tokens over all turns."""

    policy: Policy
    tokenizer: Any
    tools: list[str] = field(
        default_factory=lambda: ["calculator"]
    )  # tools that may be called, of calculator and zoom; the prompt must say how
    max_turns: int = 4  # turns of the policy in an answer; one that calls a tool in the last is cut
    zoom_frames: int = 4  # frames that a zoom shows at most; even
    zoom_pixels: int = 200704  # most pixels of each
    inner: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "visd.rollout.transformers_engine.TransformersEngine"}
    )  # who samples the turns

    def __post_init__(self) -> None:
        if unknown := [name for name in self.tools if name not in TOOLS]:
            raise ConfigError(f"rollout.engine.tools: {unknown[0]!r} is not one of {', '.join(TOOLS)}.")
        if self.max_turns < 1:
            raise ConfigError(f"rollout.engine.max_turns: {self.max_turns} must be at least 1.")
        self.shows_media = Zoom.name in self.tools
        self._tools: dict[str, Tool] = {Calculator.name: Calculator()} if Calculator.name in self.tools else {}
        self._processor: PromptProcessor | None = None
        self._inner: RolloutEngine = build(
            self.inner, "rollout.engine.inner", policy=self.policy, tokenizer=self.tokenizer
        )
        if not self._inner.uses_module:
            raise ConfigError(
                "rollout.engine.inner: this engine reads prompts as text, which may not give an answer's own ids back; take TransformersEngine."
            )

    def open(self, limits: Limits) -> None:
        self._inner.open(limits)

    def use(self, processor: PromptProcessor) -> None:
        self._processor = processor
        if not self.shows_media:
            return
        family = self.policy.family
        if not family.image_text(self.tokenizer):
            raise ConfigError(
                f"rollout.engine.tools: zoom shows images within an answer, which {family.name} is not shown; take a model of "
                "the Qwen2.5-VL or Qwen3-VL family."
            )
        if self.policy.tower is None:
            raise ConfigError(
                "model.freeze: zoom needs a vision tower that is frozen whole; take [vision], and no model.lora.vision_targets."
            )
        self._tools[Zoom.name] = Zoom(processor, self.zoom_frames, self.zoom_pixels)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        sampling = replace(sampling, stop=(*sampling.stop, CLOSE))
        drafts = [[Draft(prompt, seed) for seed in row] for prompt, row in zip(prompts, seeds, strict=True)]
        first = self._inner.generate(prompts, sampling, seeds, policy_version)
        for row, rollouts in zip(drafts, first, strict=True):
            for draft, rollout in zip(row, rollouts, strict=True):
                self._take(draft, rollout, sampling, last=self.max_turns == 1)
        for turn in range(1, self.max_turns):
            waiting = [draft for row in drafts for draft in row if draft.stop is None]
            if not waiting:
                break
            left = max(sampling.max_new_tokens - sum(draft.own) for draft in waiting)
            continued = self._inner.generate(
                [self._continued(draft, turn) for draft in waiting],
                replace(sampling, n=1, max_new_tokens=left),
                [[derive_seed("turn", draft.seed, turn)] for draft in waiting],
                policy_version,
            )
            for draft, (rollout,) in zip(waiting, continued, strict=True):
                self._take(draft, rollout, sampling, last=turn == self.max_turns - 1)
        return [tuple(self._finished(draft, policy_version) for draft in row) for row in drafts]

    def _continued(self, draft: Draft, turn: int) -> Prompt:
        """The question and the answer so far, with what has been shown."""
        media = self._media(draft)
        prompt = after(draft.prompt, draft.ids, "".join(draft.pieces), media)
        if media is None:
            return prompt
        key = f"{answer_key(prompt.sample_id, draft.seed)}\n{turn}"
        features = concatenate_features([*self.policy.encode([draft.prompt]), *draft.features])
        assert features is not None
        self.policy.keep_features(key, features)
        return replace(prompt, sample_id=key)

    def _finished(self, draft: Draft, policy_version: int) -> Rollout:
        features = concatenate_features(draft.features)
        if features is not None:
            self.policy.keep_features(answer_key(draft.prompt.sample_id, draft.seed), features)
        return draft.rollout(policy_version, self._media(draft))

    def _media(self, draft: Draft) -> AnswerMedia | None:
        if not draft.shown:
            return None
        assert self._processor is not None
        return answer_media(self.policy.family, self._processor.section.position_rule, draft.shown, len(draft.ids))

    def _take(self, draft: Draft, turn: Rollout, sampling: Sampling, last: bool) -> None:
        """Append a turn up to its first call, and the call's result; or end the answer."""
        room = sampling.max_new_tokens - sum(draft.own)
        end = call_end(turn.pieces)
        count = min(len(turn.token_ids) if end is None else end, room)
        draft.add(turn.token_ids[:count], turn.logp[:count], turn.pieces[:count], own=True)
        if end is None or end > room:
            draft.stop = turn.stop_reason if count == len(turn.token_ids) else "length"
            return
        if last or end == room:
            draft.stop = "length"
            return
        text = "".join(turn.pieces[:count])
        said = call(self._tools, text[: text.index(CLOSE) + len(CLOSE)], draft.prompt)
        draft.outcomes.append(said.outcome)
        ids = self._shown(draft, said) if said.frames else self._told(said)
        pieces = token_pieces(ids, lambda part: self.tokenizer.decode(part, skip_special_tokens=True))
        draft.add(ids, [0.0] * len(ids), pieces, own=False)

    def _told(self, said: Said) -> list[int]:
        """Ids of a tool's words."""
        words = RESULT.format(said.text)
        return list(self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _shown(self, draft: Draft, said: Said) -> Sequence[int]:
        """Ids of a tool's words and frames, which are looked at here."""
        assert self._processor is not None
        before, after_frames = RESULT.split("{}")
        showing = self._processor.show(before + said.text, said.frames, after_frames)
        draft.shown.append((len(draft.ids), showing))
        draft.features.append(self.policy.encode_images(showing.vision, showing.token_types))
        return showing.ids


def call_end(pieces: Sequence[str]) -> int | None:
    """Tokens up to and with the one that closes the first call; None where none is closed."""
    closed = "".join(pieces).find(CLOSE)
    if closed < 0:
        return None
    return next(i + 1 for i, length in enumerate(accumulate(map(len, pieces))) if length >= closed + len(CLOSE))


def after(prompt: Prompt, ids: Sequence[int], text: str, media: AnswerMedia | None = None) -> Prompt:
    """A prompt that goes on after `ids`: media and positions as in the forward that trains on them."""
    types = prompt.mm_token_type_ids.new_zeros(len(ids)) if media is None else media.token_types
    return replace(
        prompt,
        text=prompt.text + text,
        input_ids=torch.cat([prompt.input_ids, torch.tensor(ids, dtype=prompt.input_ids.dtype)]),
        mm_token_type_ids=torch.cat([prompt.mm_token_type_ids, types]),
        position_ids=torch.cat([prompt.position_ids, response_positions(prompt, len(ids), media)], dim=1),
    )
