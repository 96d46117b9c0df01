"""From a response to its rewards: which parts apply, what each is worth, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from visd.config import ConfigError, RewardSection
from visd.reward import rules
from visd.reward.parse import Parsed, parse_response
from visd.types import XYXY, Rewards, Sample, VisdError, Window

PARTS = (
    "accuracy",
    "format",
    "temporal_iou",
    "spatial_iou",
    "think_temporal_point",
    "think_temporal_segment",
    "think_spatial",
)


def score(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
    """The rewards of one response.

    `accuracy` is the IoU for windows and boxes; `temporal_iou` and `spatial_iou` are that same number again, so give
    weight to one of them. A part is None where it does not apply:
        temporal_iou, spatial_iou: the answer is no window, no box;
        think_temporal_point: the evidence has no key frames;
        think_temporal_segment: neither the answer nor the evidence has a window;
        think_spatial: neither has boxes (a box question about images takes the best IoU of any box in the reasoning).

    `sample.reward["args"]["weights"]` replaces the weights of the parts it names for this sample.

    Args:
        progress: share of the run that is over, 0-1; narrows the temporal point reward.

    Raises:
        ConfigError: `reward.weights` names a part that does not exist, or a width of the point reward is not positive.
        VisdError: the sample asks for another reward than `rules` or for an argument it does not have.
    """
    check_section(section)
    weights = {**section.weights, **sample_weights(sample)}
    parts = score_parts(sample, parse_response(text), section, progress)
    accuracy = cast(float, parts["accuracy"])
    return Rewards(
        total=sum(weights.get(name, 0.0) * value for name, value in parts.items() if value is not None),
        parts=parts,
        correct=rules.is_correct(sample.answer, accuracy),
        accuracy=accuracy,
    )


def score_parts(sample: Sample, parsed: Parsed, section: RewardSection, progress: float) -> dict[str, float | None]:
    """Every part by name, None where it does not apply to the sample."""
    answer, evidence = sample.answer, sample.evidence
    accuracy = rules.accuracy(answer, parsed.answer, section.number_tolerance)
    parts: dict[str, float | None] = dict.fromkeys(PARTS)
    parts["accuracy"] = accuracy
    parts["format"] = rules.format_score(parsed, answer, grounded=bool(evidence.boxes))
    if answer.type == "window":
        parts["temporal_iou"] = accuracy
    if answer.type == "box":
        parts["spatial_iou"] = accuracy
    if evidence.frames:
        sigma = rules.temporal_sigma(
            progress, section.temporal_sigma, section.temporal_sigma_end, section.temporal_sigma_until
        )
        parts["think_temporal_point"] = rules.think_temporal_point(parsed.times, evidence.frames, sigma)
    if windows := gold_windows(sample):
        parts["think_temporal_segment"] = rules.think_temporal_segment(parsed.times, windows)
    parts["think_spatial"] = _spatial(sample, parsed, section)
    return parts


def gold_windows(sample: Sample) -> tuple[Window, ...]:
    """The windows of the evidence; of the answer where the evidence has none."""
    if sample.evidence.windows or sample.answer.type != "window":
        return sample.evidence.windows
    return (cast(Window, sample.answer.value),)


def still(sample: Sample) -> bool:
    """Whether all media are images, so that a claim needs no time."""
    return all(item.kind == "image" for item in sample.media)


def _spatial(sample: Sample, parsed: Parsed, section: RewardSection) -> float | None:
    if sample.answer.type == "box" and still(sample):
        return rules.best_box_iou(parsed.boxes, cast(XYXY, sample.answer.value))
    if not sample.evidence.boxes:
        return None
    return rules.think_spatial(
        parsed.claims,
        sample.evidence.boxes,
        gate=section.gate_seconds,
        match=section.spatial_match,
        normaliser=section.spatial_normaliser,
        aggregate=section.spatial_aggregate,
        need_time=not still(sample),
    )


def check_section(section: RewardSection) -> None:
    """Refuse settings that no response can be scored with.

    Raises:
        ConfigError: names the field.
    """
    for name in section.weights:
        if name not in PARTS:
            raise ConfigError(f"reward.weights.{name}: is no part of the reward; the parts are {', '.join(PARTS)}.")
    for field in ("temporal_sigma", "temporal_sigma_end"):
        if not getattr(section, field) > 0:
            raise ConfigError(f"reward.{field}: {getattr(section, field)!r} must be greater than 0.")


def sample_weights(sample: Sample) -> Mapping[str, float]:
    """The weights that a sample sets for itself.

    Raises:
        VisdError: names the sample and the field.
    """
    name, args = sample.reward.get("name"), sample.reward.get("args", {})
    if name != "rules":
        raise VisdError(f"sample {sample.id!r}: reward.name {name!r} is unknown; use 'rules'.")
    for key in args:
        if key != "weights":
            raise VisdError(f"sample {sample.id!r}: reward.args.{key} is unknown; the only argument is 'weights'.")
    weights = args.get("weights", {})
    if not isinstance(weights, Mapping):
        raise VisdError(f"sample {sample.id!r}: reward.args.weights must map parts to numbers, got {weights!r}.")
    for part, value in weights.items():
        if part not in PARTS:
            parts = ", ".join(PARTS)
            raise VisdError(f"sample {sample.id!r}: reward.args.weights.{part} is no part of the reward; use {parts}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise VisdError(f"sample {sample.id!r}: reward.args.weights.{part} must be a number, got {value!r}.")
    return weights
