"""Samples and rollouts for the tests of rewards, judge and teacher's view."""

from __future__ import annotations

from typing import Any

from visd.types import XYXY, Answer, Box, Evidence, Media, Message, Prompt, Rollout, RolloutGroup, Sample, StopReason

RED: XYXY = (0.1, 0.2, 0.4, 0.5)
VIDEO = Media("video", "clip.mp4")
IMAGE = Media("image", "frame.png")
NOTHING = Evidence()


def sample(answer: Answer, evidence: Evidence = NOTHING, media: Media | None = VIDEO, **fields: Any) -> Sample:
    return Sample(
        "s1",
        "synth",
        "which",
        (media,) if media else (),
        (Message("user", "<video>What?"),),
        answer,
        evidence,
        **fields,
    )


def proof() -> Evidence:
    """One red square, to be seen at 1 s and 2 s, in the window from 1 s to 3 s."""
    return Evidence(
        ((1.0, 3.0),), (1.0, 2.0), (Box(1.0, "red square", RED), Box(2.0, "red square", (0.5, 0.5, 0.9, 0.9)))
    )


def claim(name: str = "red square", box: XYXY = RED, t: float | str | None = 1.0) -> str:
    place = f"<obj>{name}</obj><box>[{','.join(map(str, box))}]</box>"
    return place if t is None else f"{place}at<t>{t}</t>s"


def response(think: str, answer: str) -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


def rollout(text: str, stop: StopReason = "eos") -> Rollout:
    return Rollout((), (), text, (), stop, 0, 0)


def group(of: Sample, *texts: str, stop: StopReason = "eos") -> RolloutGroup:
    prompt: Prompt = None  # type: ignore[assignment]  # no reward or rule judgement reads the prompt
    return RolloutGroup(of, prompt, tuple(rollout(text, stop) for text in texts))
