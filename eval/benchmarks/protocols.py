"""The presets that every benchmark has, and the texts that official protocols share.

Prompts are part of a protocol: a score that was published for one prompt may not be compared with a score for another.
"""

from __future__ import annotations

from collections.abc import Mapping

from eval.benchmarks.base import Protocol

QWEN_VIDEO: dict[str, float | int] = {
    "fps": 2.0, "min_frames": 4, "max_frames": 768, "max_pixels": 768 * 28 * 28, "total_pixels": 24576 * 28 * 28,
}  # fmt: skip
"""Qwen2.5-VL's published sampling (arXiv 2502.13923): 2 frames a second, at most 768, 24,576 tokens a video."""

LETTER_ONLY = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."

LETTER_PROTOCOL = Protocol(
    source="letter prompt; Qwen2.5-VL's sampling", templates={"*": LETTER_ONLY}, video=QWEN_VIDEO
)
"""Of benchmarks that publish no prompt of their own."""

_R1 = (
    "{question}\n{options}\nPlease think about this question as if you were a human pondering deeply. "
    "Engage in an internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
    "'let's break it down', etc, or other natural language thought expressions "
    "It's encouraged to include self-reflection or verification in the reasoning process. "
    "Provide your detailed reasoning between the <think> </think> tags, "
    "and then give your final answer between the <answer> </answer> tags."
)
VIDEO_R1_16 = Protocol(
    source="Video-R1 (arXiv 2503.21776, tulerfeng/Video-R1): 16 frames, 256 tokens a frame, T 0.1, top-p 0.001",
    templates={
        "letter": f"{_R1} Please provide only the single option letter (e.g., A, B, C, D, etc.) within the <answer> </answer> tags.",
        "number": f"{_R1} Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags.",
        "*": f"{_R1} Please provide your text answer within the <answer> </answer> tags.",
    },
    video={
        "fps": 2.0,
        "min_frames": 4,
        "max_frames": 16,
        "max_pixels": 256 * 28 * 28,
        "total_pixels": 16 * 256 * 28 * 28,
    },
    max_new_tokens=1024,
    temperature=0.1,
    top_p=0.001,
)

_O3 = (
    "{question}\n{options}\nYou must first think about the reasoning process in the mind and then provide the user with "
    "the answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively. All reasoning must be grounded in visual evidence from the video. When you mention any related "
    "object, person, or specific visual element, you must strictly follow the following format: "
    "`<obj>object_name</obj><box>bounding_box</box>at<t>time_in_seconds</t>s`."
)
OPEN_O3 = Protocol(
    source="Open-o3-Video (arXiv 2510.20579, marinero4972/Open-o3-Video): 1 fps, at most 16 frames, greedy",
    templates={
        "letter": f"{_O3} Answer with the option's letter within the <answer> </answer> tags.",
        "window": f"{_O3} The answer must follow the following format: `From <t>start_time</t>s to <t>end_time</t>s'",
        "*": _O3,
    },
    video={"fps": 1.0, "min_frames": 4, "max_frames": 16, "max_pixels": 2097152, "total_pixels": 2097152 * 16},
    system="You are a helpful assistant.",
    max_new_tokens=2048,
)

PRESETS: Mapping[str, Protocol] = {"video_r1_16": VIDEO_R1_16, "open_o3": OPEN_O3}


def with_presets(official: Protocol) -> dict[str, Protocol]:
    """A benchmark's protocols: its own and the presets."""
    return {"official": official, **PRESETS}
