"""The nouns of one training step, in the order in which they come to be.

    Sample -> Prompt -> RolloutGroup -> Rewards -> JudgeReport -> TokenScores -> TokenCredit -> loss

Each noun is a typed dataclass, one documented field a line. Shapes: B rollouts of a micro-batch, T response tokens
(right-padded), K support tokens, P prompt tokens. This module imports no torch at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
AnswerType = Literal["word", "number", "letter", "text", "window", "box"]
MediaKind = Literal["video", "image"]
StopReason = Literal["eos", "length"]
Window = tuple[float, float]
XYXY = tuple[float, float, float, float]

ANSWER_TYPES: tuple[AnswerType, ...] = ("word", "number", "letter", "text", "window", "box")
DIMENSIONS: tuple[str, ...] = ("answer", "logic", "temporal", "spatial")
"""The dimensions a judge scores and a token belongs to, in the order used for indices."""


class VisdError(Exception):
    """Base of the errors visd raises for its users; the message names the culprit and what to do."""


class DroppedSample(VisdError):
    """A sample that cannot be used. It is counted under `reason` and never replaced by another."""

    def __init__(self, sample_id: str, reason: str, message: str):
        super().__init__(f"sample {sample_id!r}: {message}")
        self.sample_id = sample_id
        self.reason = reason


@dataclass(frozen=True)
class Media:
    """One video or image of a sample."""

    kind: MediaKind
    path: str  # relative to the data root
    start: float | None = None  # s, beginning of the used part
    end: float | None = None  # s
    fps: float | None = None  # overrides prompt.video.fps for this item
    also: tuple[float, ...] = ()  # s, times of frames that are shown besides those sampled (prompt.key_frames)


@dataclass(frozen=True)
class Message:
    """One chat turn the student sees; `<video>` and `<image>` in the text stand for the media, in order."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Question:
    """All that a student prompt may be built from. It has no field for an answer or for evidence.

    With `prompt.key_frames`, and only then, `Media.also` holds times that came from the evidence.
    """

    id: str
    media: tuple[Media, ...]
    messages: tuple[Message, ...]
    answer_type: AnswerType  # decides which instruction the template adds, never the value


@dataclass(frozen=True)
class Answer:
    """The verified answer."""

    type: AnswerType
    value: str | float | Window | XYXY  # window: seconds; box: 0-1
    options: tuple[str, ...] = ()  # texts of A, B, ...; for letters only
    tolerance: float = 0.0  # for numbers, absolute


@dataclass(frozen=True)
class Box:
    """A named object at a time."""

    t: float  # s
    name: str
    xyxy: XYXY  # 0-1


@dataclass(frozen=True)
class Evidence:
    """Privileged facts: where in the media the answer is to be seen."""

    windows: tuple[Window, ...] = ()  # s
    frames: tuple[float, ...] = ()  # key-frame times, s
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One manifest record, validated."""

    id: str
    source: str
    family: str  # question family, for scores by family
    media: tuple[Media, ...]
    messages: tuple[Message, ...]
    answer: Answer
    evidence: Evidence = Evidence()
    rationale: str | None = None  # reasoning trace for supervised training, without the answer tag
    reward: Mapping[str, Any] = field(default_factory=lambda: {"name": "rules", "args": {}})
    meta: Mapping[str, Any] = field(default_factory=dict)

    def question(self) -> Question:
        """The part of the sample that the student may see."""
        return Question(self.id, self.media, self.messages, self.answer.type)


@dataclass(frozen=True)
class Frames:
    """Decoded frames of one video or image and when they were shown."""

    pixels: Any  # numpy uint8 [N, H, W, 3], already at the size the vision tower sees
    times: tuple[float, ...]  # s, exact presentation times, length N
    indices: tuple[int, ...]  # frame numbers in the file, length N
    source_fps: float  # frames per second of the file
    duration: float  # s


@dataclass(frozen=True)
class VisionInputs:
    """Processed media of one prompt, in the order of their placeholders."""

    pixel_values_videos: Tensor | None = None  # [patches, patch_dim]
    video_grid_thw: Tensor | None = None  # [videos, 3], in patches
    second_per_grid_ts: tuple[float, ...] = ()  # s covered by one temporal grid cell, one a video
    pixel_values: Tensor | None = None  # images, [patches, patch_dim]
    image_grid_thw: Tensor | None = None  # [images, 3]

    @property
    def empty(self) -> bool:
        return self.pixel_values_videos is None and self.pixel_values is None


@dataclass(frozen=True)
class Prompt:
    """A question, processed once: ids, pixels, positions. Holds nothing privileged."""

    sample_id: str
    text: str  # rendered chat with one placeholder a medium, or a frame (prompt.layout)
    input_ids: Tensor  # [P] long
    mm_token_type_ids: Tensor  # [P] int, 0 text, 1 image, 2 video
    position_ids: Tensor  # [4, P] long: text order, then t, h, w
    vision: VisionInputs
    frame_times: tuple[tuple[float, ...], ...]  # s, of the sampled frames, one tuple a medium
    suffix_start: int  # index of the first token of the chat suffix that opens the assistant's turn; privileged text goes before it
    kinds: tuple[MediaKind, ...] = ()  # of each placeholder in `text`, in order
    frames: tuple[Frames, ...] = ()  # of each placeholder, as the processor was given them
    media: tuple[Media, ...] = ()  # the sample's
    reduced: str = ""  # frames or pixels, where its media were reduced to fit prompt.max_tokens

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def next_position(self) -> int:
        """Position (all rows) of the first response token."""
        return int(self.position_ids[1:, -1].max()) + 1


@dataclass(frozen=True)
class AnswerMedia:
    """Images that tools showed in an answer of T tokens."""

    token_types: Tensor  # [T] int, 0 text, 1 image
    positions: Tensor  # [4, T] long, counted from the answer's first token
    vision: VisionInputs  # in the order of their placeholders
    times: tuple[float, ...]  # s, one an image


@dataclass(frozen=True)
class Rollout:
    """One sampled answer."""

    token_ids: tuple[int, ...]  # ends with an end-of-turn id unless stop_reason is "length"
    logp: tuple[float, ...]  # log-probability at the sampling temperature, same length
    text: str  # decoded without special tokens
    pieces: tuple[str, ...]  # text of each token; they concatenate to `text`
    stop_reason: StopReason
    seed: int
    policy_version: int  # optimiser steps the sampling policy had taken
    source: Literal["policy", "teacher", "data"] = "policy"  # metrics of the policy's answers count no other
    own: tuple[bool, ...] = ()  # False for a token that a tool wrote; empty: the policy wrote all
    calls: tuple[str, ...] = ()  # outcome of each tool call: ok, or why there was no result
    media: AnswerMedia | None = field(default=None, compare=False)  # frames that tools showed

    @property
    def length(self) -> int:
        """Tokens that the policy wrote; these alone are trained on and counted."""
        return sum(self.own) if self.own else len(self.token_ids)

    @property
    def own_text(self) -> str:
        """What the policy wrote."""
        return "".join(self.of_own(self.pieces)) if self.own else self.text

    def of_own(self, values: Sequence[T]) -> Sequence[T]:
        """The values, one a token, of the tokens that the policy wrote."""
        return [value for value, own in zip(values, self.own, strict=True) if own] if self.own else values


@dataclass(frozen=True)
class Rewards:
    """Verifiable rewards of one rollout."""

    total: float  # weighted sum of the parts that apply
    parts: Mapping[str, float | None]  # None where a part does not apply to the question
    correct: bool  # right by the answer type's own test (IoU >= 0.5 for windows and boxes)
    accuracy: float  # 0-1


@dataclass(frozen=True)
class Span:
    """A quotation of the rollout, located exactly."""

    start: int  # character offsets in Rollout.text
    end: int
    dimension: str  # one of DIMENSIONS
    verdict: Literal["right", "wrong"]


JudgeStatus = Literal["ok", "repaired", "parse_failure", "timeout", "refused", "over_budget", "skipped"]


@dataclass(frozen=True)
class JudgeReport:
    """What a judge says of one rollout."""

    status: JudgeStatus
    answer: float | None = None  # 0-1; None where the dimension does not apply
    logic: float | None = None
    temporal: float | None = None
    spatial: float | None = None
    feedback: str = ""  # at most 1,000 characters, never quotes the rollout
    spans: tuple[Span, ...] = ()

    @property
    def usable(self) -> bool:
        return self.status in ("ok", "repaired")

    def score(self, dimension: str) -> float | None:
        return getattr(self, dimension)

    def contradicts(self, rewards: Rewards) -> bool | None:
        """Whether the answer's score, right from 0.5 on, and the verifiable reward disagree; None without a score."""
        return None if not self.usable or self.answer is None else (self.answer >= 0.5) != rewards.correct


@dataclass(frozen=True)
class RolloutGroup:
    """A prompt's rollouts and all that was found out about each. Lists run over the G rollouts."""

    sample: Sample
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    rewards: tuple[Rewards, ...] = ()
    reports: tuple[JudgeReport, ...] = ()
    advantages: tuple[float, ...] = ()  # group-relative, one scalar a rollout


@dataclass(frozen=True)
class PrivilegedContext:
    """The text blocks the teacher sees besides the prompt; an empty field adds no block."""

    answer: str | None = None
    window: Window | None = None  # s
    key_times: tuple[float, ...] = ()  # s
    feedback: str | None = None
    reference: str | None = None  # a reference solution
    peers: tuple[str, ...] = ()  # other rollouts
    playbook: str | None = None  # lessons of earlier steps
    trial: str | None = None  # the rollout itself, as an attempt
    reflection: str | None = None  # what was written about the attempt

    @property
    def empty(self) -> bool:
        return self == PrivilegedContext()


@dataclass(frozen=True)
class UnitNeeds:
    """How a teacher with another tokenizer is compared, in units of text that both tokenizers cut out whole."""

    alignment: Literal["minimal", "following"] = (
        "minimal"  # following: what does not match is merged with the next match
    )
    beyond: bool = False  # full_logp goes on after the student's ids with those that only the teacher knows


@dataclass(frozen=True)
class ScoreNeeds:
    """What to compute at each response position."""

    sampled: bool = True  # log-probability of the sampled token
    top_k: int = 0  # the K most probable tokens and their log-probabilities
    support: Literal["teacher", "student", "both"] = (
        "teacher"  # whose K most probable tokens are read in both models; both: the student's, then the teacher's
    )
    overlap_k: int = (
        0  # also the log-probability of the model's own token of that rank, to know which ids rank above it
    )
    entropy: bool = False
    full: bool = False  # all log-probabilities, [B, T, V]
    log_z: bool = False  # the logarithm of the normaliser of the logits
    units: UnitNeeds | None = None  # across two tokenizers, with `full`; for a method that `crosses_tokenizers`


@dataclass
class TokenScores:
    """A model's view of the rollouts' own tokens, at the sampling temperature."""

    logp: Tensor  # [B, T], of the sampled token; 0 on padding
    entropy: Tensor | None = None  # [B, T], nats
    support_ids: Tensor | None = None  # [B, T, K] long, the same ids in teacher and student
    support_logp: Tensor | None = None  # [B, T, K]
    full_logp: Tensor | None = None  # [B, T, V]; -inf for ids that cannot be sampled
    kth_logp: Tensor | None = None  # [B, T], log-probability of the overlap_k-th most probable token
    log_z: Tensor | None = None  # [B, T], log of the sum of exp(logits) over the ids that can be sampled
    units: Tensor | None = (
        None  # [B, T] long, number of each token's aligned unit from 1, negative unless it is one token that both models know; 0 for none
    )
    logp_rest: Tensor | None = None  # [B, T], at a unit's first token: log-probability of its later ones

    def detach(self) -> TokenScores:
        return self._map(lambda value: value.detach())

    def row(self, index: int, length: int) -> TokenScores:
        """Row `index` alone, without its padding: [length, ...]."""
        return self._map(lambda value: value[index, :length])

    def where(self, mask: Tensor) -> TokenScores:
        """The tokens of a mask, [T] to [n, ...]."""
        return self._map(lambda value: value[mask])

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenScores:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return TokenScores(**changed)


@dataclass
class TokenBatch:
    """Rollouts of one micro-batch, right-padded."""

    token_ids: Tensor  # [B, T] long
    mask: Tensor  # [B, T] bool, response tokens
    advantages: Tensor  # [B] float32
    engine_logp: Tensor  # [B, T], log-probability at sampling
    groups: Sequence[RolloutGroup]  # the group of each row, length B
    indices: Sequence[int]  # which rollout of its group, length B
    has_teacher: Tensor  # [B] bool: the teacher scored this row
    dimensions: Tensor  # [B, T] long, index into DIMENSIONS
    dimension_scores: Tensor  # [B, 4] judge scores, NaN where none

    @property
    def taught(self) -> Tensor:
        """[B, T] bool: response tokens that the teacher scored."""
        return self.mask & self.has_teacher[:, None]


@dataclass
class TokenCredit:
    """Per-token advantages and why they are what they are."""

    advantages: Tensor  # [B, T], detached
    weights: Tensor  # [B, T], advantages / A_i; 1 where the method leaves GRPO as it is
    log_ratio: Tensor | None = None  # [B, T], D_t = log teacher - log student
    clipped: Tensor | None = None  # [B, T] bool, the weight hit its bound


@dataclass
class Term:
    """An extra differentiable loss term.

    What it adds to the loss is the sum of weight * value * the token's share of the step (`objective.aggregation`) where
    `mask` is set. Shares are of all rollouts of the step, so that tokens outside the mask count as 0 and neither
    micro-batches nor ranks change the value.
    """

    value: Tensor  # [B, T]
    mask: Tensor  # [B, T] bool
    weight: float
    clipped: Tensor | None = None  # [B, T], share of the token's entries or 0/1: where a clamp decided the value
    measures: Mapping[str, Tensor] = field(default_factory=dict)  # [B, T] each, logged as means over `mask`
