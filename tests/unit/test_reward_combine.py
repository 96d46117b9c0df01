"""Which parts apply, what they weigh, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reward_data import IMAGE, RED, claim, proof, response, sample
from visd.config import ConfigError, RewardSection
from visd.reward.combine import PARTS, score
from visd.types import Answer, Box, Evidence, Media, Sample, VisdError

RIGHT = Answer("word", "right")


def applied(of: Sample, text: str = "") -> set[str]:
    return {name for name, value in score(of, text, RewardSection(), 0.0).parts.items() if value is not None}


@pytest.mark.parametrize(
    ("answer", "evidence", "media", "expected"),
    [
        (RIGHT, Evidence(), None, set()),
        (RIGHT, proof(), Media("video", "v.mp4"), {"think_temporal_point", "think_temporal_segment", "think_spatial"}),
        (Answer("window", (1.0, 3.0)), Evidence(), Media("video", "v.mp4"), {"temporal_iou", "think_temporal_segment"}),
        (Answer("box", RED), Evidence(), Media("video", "v.mp4"), {"spatial_iou"}),
        (Answer("box", RED), Evidence(), IMAGE, {"spatial_iou", "think_spatial"}),
    ],
)
def test_parts_apply_by_answer_and_evidence(
    answer: Answer, evidence: Evidence, media: Media | None, expected: set[str]
) -> None:
    of = sample(answer, evidence, media)
    assert applied(of) == {"accuracy", "format"} | expected
    assert set(score(of, "", RewardSection(), 0.0).parts) == set(PARTS)


def test_default_weights() -> None:
    rewards = score(sample(RIGHT, proof()), response("so right", "right"), RewardSection(), 0.0)
    assert rewards.total == pytest.approx(1.2)
    assert (rewards.correct, rewards.accuracy) == (True, 1.0)
    wrong = score(sample(RIGHT, proof()), response("so left", "left"), RewardSection(), 0.0)
    assert wrong.total == pytest.approx(0.2)
    assert not wrong.correct


def test_windows_and_boxes_are_rewarded_through_accuracy() -> None:
    text = response("<t>1</t>s to <t>4</t>s", "From <t>1.0</t>s to <t>4.0</t>s")
    rewards = score(sample(Answer("window", (1.0, 3.0))), text, RewardSection(), 0.0)
    assert rewards.accuracy == rewards.parts["accuracy"] == rewards.parts["temporal_iou"] == pytest.approx(2 / 3)
    assert rewards.correct
    assert rewards.total == pytest.approx(2 / 3 + 0.2)
    box = score(sample(Answer("box", RED)), response(claim(), "<box>[0.1,0.2,0.4,0.3]</box>"), RewardSection(), 0.0)
    assert box.accuracy == box.parts["spatial_iou"] == pytest.approx(1 / 3)
    assert not box.correct


def test_every_part_by_hand() -> None:
    text = response(claim(box=(0.1, 0.2, 0.4, 0.35)) + " <t>4.0</t>s so right", "right")
    rewards = score(sample(RIGHT, proof()), text, RewardSection(), 1.0)  # key frames 1 and 2, window 1 to 3, sigma 1
    assert rewards.parts == {
        "accuracy": 1.0,
        "format": 1.0,
        "temporal_iou": None,
        "spatial_iou": None,
        "think_temporal_point": pytest.approx((1 + 0.1353352832366127) / 2),  # exp(-2)
        "think_temporal_segment": 0.5,
        "think_spatial": pytest.approx(0.5),
    }


def test_progress_narrows_the_point_reward() -> None:
    of, text = sample(RIGHT, proof()), response("<t>5.0</t>s", "right")
    early, late = (score(of, text, RewardSection(), p).parts["think_temporal_point"] for p in (0.0, 1.0))
    assert early == pytest.approx(0.7548396019890073)  # exp(-9/32)
    assert late == pytest.approx(0.011108996538242306)  # exp(-9/2)


def test_settings_of_the_spatial_part_arrive() -> None:
    boxes = (Box(1.0, "red square", RED), Box(1.0, "blue square", (0.6, 0.6, 0.9, 0.9)))
    of = sample(RIGHT, Evidence(boxes=boxes))
    text = response(claim() + claim("dog"), "right")

    def spatial(**fields: Any) -> float | None:
        return score(of, text, RewardSection(**fields), 0.0).parts["think_spatial"]

    assert spatial() == pytest.approx(0.25)
    assert spatial(spatial_normaliser="matched") == pytest.approx(0.5)
    assert spatial(spatial_aggregate="max") == pytest.approx(0.5)
    assert spatial(spatial_match="exact") == pytest.approx(0.5)
    assert spatial(gate_seconds=0.0) == pytest.approx(0.25)
    late = response(claim(t=3.0), "right")
    assert score(of, late, RewardSection(gate_seconds=2.0), 0.0).parts["think_spatial"] == pytest.approx(0.5)


def test_images_need_no_times() -> None:
    of = sample(RIGHT, Evidence(boxes=(Box(0.0, "red square", RED),)), IMAGE)
    assert score(of, response(claim(t=None), "right"), RewardSection(), 0.0).parts["think_spatial"] == pytest.approx(
        1.0
    )


def test_tolerance_of_the_section_arrives() -> None:
    of = sample(Answer("number", 3.0))
    assert not score(of, response("", "4"), RewardSection(), 0.0).correct
    assert score(of, response("", "4"), RewardSection(number_tolerance=1.0), 0.0).correct


def test_a_part_that_does_not_apply_adds_nothing() -> None:
    section = RewardSection(weights={"accuracy": 1.0, "temporal_iou": 1.0})
    assert score(sample(RIGHT), response("", "right"), section, 0.0).total == pytest.approx(1.0)


def test_a_truncated_answer_is_no_answer() -> None:
    rewards = score(sample(RIGHT), "<think>so right</think><answer>right", RewardSection(), 0.0)
    assert (rewards.total, rewards.correct) == (0.0, False)


def test_a_samples_weights_replace_the_sections() -> None:
    own = {"name": "rules", "args": {"weights": {"format": 2.0}}}
    assert score(sample(RIGHT, reward=own), response("", "right"), RewardSection(), 0.0).total == pytest.approx(3.0)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"reward\.weights\.acuracy"):
        score(sample(RIGHT), "", RewardSection(weights={"acuracy": 1.0}), 0.0)


@pytest.mark.parametrize("field", ["temporal_sigma", "temporal_sigma_end"])
def test_a_width_of_zero_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.{field}:"):
        score(sample(RIGHT), "", RewardSection(**{field: 0.0}), 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reward", "field"),
    [
        ({"name": "magic", "args": {}}, "reward.name 'magic'"),
        ({"args": {}}, "reward.name None"),
        ({"name": "rules", "args": {"scale": 2}}, "reward.args.scale"),
        ({"name": "rules", "args": {"weights": [1]}}, "reward.args.weights must"),
        ({"name": "rules", "args": {"weights": {"luck": 1.0}}}, "reward.args.weights.luck"),
        ({"name": "rules", "args": {"weights": {"format": "high"}}}, "reward.args.weights.format"),
    ],
)
def test_a_samples_wrong_reward_is_refused(reward: dict[str, Any], field: str) -> None:
    with pytest.raises(VisdError, match="sample 's1'") as caught:
        score(sample(RIGHT, reward=reward), "", RewardSection(), 0.0)
    assert field in str(caught.value)


@given(
    st.text(max_size=80),
    st.sampled_from([RIGHT, Answer("window", (1.0, 3.0)), Answer("box", RED), Answer("text", "a b")]),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_every_part_is_bounded(body: str, answer: Answer, progress: float) -> None:
    for text in (body, response(body, body), response(claim() + body, "[1, 2]")):
        rewards = score(sample(answer, proof()), text, RewardSection(), progress)
        assert all(value is None or 0 <= value <= 1 for value in rewards.parts.values())
        assert 0 <= rewards.total <= 1.2
