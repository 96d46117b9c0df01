"""The message to a language-model judge. The response to judge is data between markers that it cannot imitate.

Every replacement in a response is one character for one character, so that a quotation of what the judge was shown lies
at the same place in the response itself.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from PIL import Image

from visd.judge.rubrics import Rubric, rubric_for
from visd.types import Answer, Frames, Rollout, Sample, StopReason

OPEN = "<<<RESPONSE {nonce}>>>"
CLOSE = "<<<END OF RESPONSE {nonce}>>>"
CUT = "\n[... {count} characters left out here ...]\n"
JPEG_QUALITY = 85

_ANGLES = {"<": "‹", "＜": "‹", "﹤": "‹", ">": "›", "＞": "›", "﹥": "›", "[": "⟦", "|": "¦", "｜": "¦"}
_ESCAPED = re.compile(
    r"(?=[<＜﹤>＞﹥|｜\[])(?:"  # what each of them begins with, or five would be tried at every character
    r"[<＜﹤]{2,}|[>＞﹥]{2,}"  # markers, and <<SYS>>
    r"|[<＜][|｜]|[|｜][>＞]"  # <|im_start|> and its like
    r"|</?(?=s>|bos>|eos>|pad>|unk>|(?:start|end)_of_turn>|image>|video>|(?:tool|function)_(?:call|response)s?>)"
    r"|\[(?=/?(?:INST|SYS|IMG|VIDEO|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]))",
    re.IGNORECASE,
)
"""What a chat template or a tokenizer might read as more than text, and what looks like a marker."""
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)
"""Control characters, directions, zero widths, variation selectors, tag characters, halves of surrogate pairs."""


Part = dict[str, Any]
"""Of a message's content."""


@dataclass(frozen=True)
class Shown:
    """A response as a judge may see it."""

    whole: str  # as long as the response, character for character
    text: str  # `whole`, cut in its middle where it is long
    nonce: str  # stands in the markers, and nowhere in the text


@dataclass(frozen=True)
class Inquiry:
    """All that is asked about one rollout."""

    messages: list[dict[str, Any]]
    rubric: Rubric
    shown: Shown
    text_bytes: int  # of all text
    images: int


@dataclass(frozen=True)
class Case:
    """What is the same in the inquiries about all rollouts of a sample."""

    sample_id: str
    rubric: Rubric
    facts: str
    pictures: Sequence[Part]


def case_of(sample: Sample, sees: str, pictures: Sequence[Part] = ()) -> Case:
    """What a judge is told besides the response.

    Args:
        sees: evidence, frames or both. The verified answer is always told.
        pictures: what `pictures_of` gives, for `frames` and `both`.
    """
    known = json.dumps(facts(sample, evidence=sees != "frames"), ensure_ascii=False, indent=1)
    return Case(sample.id, rubric_for(sample, sees), f"Facts (JSON):\n{known}", pictures)


def inquiry(case: Case, rollout: Rollout, max_chars: int) -> Inquiry:
    """The messages for one rollout; equal rollouts of a sample give equal messages.

    Args:
        max_chars: a longer response is cut in its middle.
    """
    shown = show(rollout.text, case.sample_id, max_chars)
    text = "\n\n".join(
        [
            case.facts,
            _delimited(shown, rollout.stop_reason),
            "Assess the response between the markers. Answer with the JSON object alone.",
        ]
    )
    content: Any = [*case.pictures, {"type": "text", "text": text}] if case.pictures else text
    messages = [{"role": "system", "content": case.rubric.text}, {"role": "user", "content": content}]
    size = sum(len(part.encode("utf-8")) for part in (case.rubric.text, text))
    return Inquiry(messages, case.rubric, shown, size, len(case.pictures) // 2)


def show(text: str, sample_id: str, max_chars: int) -> Shown:
    """Make a response harmless to show, and find a code for its markers."""
    whole = neutralised(text)
    return Shown(whole, shortened(whole, max_chars), nonce_for(whole, sample_id))


def neutralised(text: str) -> str:
    """The text with markers, special tokens and invisible characters defused, one character for one."""
    text = _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return _ESCAPED.sub(lambda m: "".join(_ANGLES.get(c, c) for c in m[0]), text)


def shortened(text: str, max_chars: int) -> str:
    """The beginning and the end of a long text with a remark between; a text within the limit as it is."""
    if len(text) <= max_chars:
        return text
    tail = max_chars // 2  # the answer stands at the end
    head = max_chars - tail
    return text[:head] + CUT.format(count=len(text) - max_chars) + text[len(text) - tail :]


def nonce_for(text: str, sample_id: str) -> str:
    """A code that the text cannot hold on purpose, because it is a hash of the text; equal texts give equal codes."""
    count = 0
    while (code := hashlib.sha256(f"{count}\0{sample_id}\0{text}".encode("utf-8", "replace")).hexdigest()[:16]) in text:
        count += 1
    return code


def facts(sample: Sample, evidence: bool) -> dict[str, Any]:
    """What is known of a sample, JSON-able."""
    answer = sample.answer
    known: dict[str, Any] = {
        "question": "\n".join(neutralised(m.content) for m in sample.messages if m.role == "user"),
        "answer_type": answer.type,
        "verified_answer": _value(answer),
    }
    if answer.options:
        known["options"] = {chr(ord("A") + i): neutralised(option) for i, option in enumerate(answer.options)}
    if answer.tolerance:
        known["tolerance"] = answer.tolerance
    if evidence and sample.evidence.windows:
        known["verified_windows_s"] = [list(window) for window in sample.evidence.windows]
    if evidence and sample.evidence.frames:
        known["key_times_s"] = list(sample.evidence.frames)
    if evidence and sample.evidence.boxes:
        boxes = sample.evidence.boxes
        known["verified_boxes"] = [{"t": b.t, "object": neutralised(b.name), "box": list(b.xyxy)} for b in boxes]
    return known


def _value(answer: Answer) -> Any:
    if answer.type in ("window", "box"):
        return list(cast(tuple[float, ...], answer.value))
    return neutralised(answer.value) if isinstance(answer.value, str) else answer.value


def _delimited(shown: Shown, stop_reason: StopReason) -> str:
    end = "It was cut off there: it had reached the longest length allowed." if stop_reason == "length" else ""
    opening, closing = (mark.format(nonce=shown.nonce) for mark in (OPEN, CLOSE))
    return f"{opening}\n{shown.text}\n{closing}\n{end}".rstrip("\n")


def chosen_frames(frames: Frames, most: int) -> Frames:
    """At most so many frames, evenly spread, the first and the last among them."""
    count = len(frames.times)
    if count <= most:
        return frames
    places = [round(i * (count - 1) / max(most - 1, 1)) for i in range(most)]
    return replace(
        frames,
        pixels=frames.pixels[places],
        times=tuple(frames.times[i] for i in places),
        indices=tuple(frames.indices[i] for i in places),
    )


def pictures_of(media: Sequence[Frames], most: int) -> list[Part]:
    """A caption and an image for each of at most `most` frames of each medium."""
    parts: list[Part] = []
    for number, frames in enumerate(chosen_frames(of, most) for of in media):
        which = f" of medium {number + 1}" if len(media) > 1 else ""
        for pixels, time in zip(frames.pixels, frames.times, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
            url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            parts.append({"type": "text", "text": f"Frame{which} at {round(time, 2)} s:"})
            parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts
