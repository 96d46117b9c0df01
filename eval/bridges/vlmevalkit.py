"""A checkpoint behind the message interface of VLMEvalKit (open-compass/VLMEvalKit, `vlmeval/vlm/base.py`).

    from functools import partial
    from vlmeval.config import supported_VLM
    from eval.bridges.vlmevalkit import VisdVLM
    supported_VLM["visd"] = partial(VisdVLM, model="outputs/demo/model", engine="vllm")

With these lines in VLMEvalKit's `vlmeval/config.py`, `run.py --model visd --data Video-MME_64frame` asks the checkpoint with
visd's own frames, prompts and engines; how many frames a video has is the data set's. A task is given the final answer alone
unless `answer_only=False`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eval.bridges.answerer import ANYWHERE, Answerer, question_of, settings_from
from visd.config import VideoSection
from visd.seeding import derive_seed
from visd.types import Media, VisdError

EVENLY = 1000.0
"""frames a second, more than any video has: all frames are wanted, and their number is limited evenly."""


class VisdVLM:
    """What VLMEvalKit asks of a video model. It sets `nframe` or `fps` to what the data set wants, and the other to None."""

    is_api = False
    INSTALL_REQ = False
    INTERLEAVE = True  # texts and media in any order
    VIDEO_LLM = True  # is given paths of videos, not frames

    def __init__(self, **arguments: Any):
        """Arguments are the fields of `BridgeSettings`."""
        self.answerer = Answerer(settings_from(arguments))
        video = self.answerer.settings.video
        self.nframe: int | None = video.max_frames
        self.fps: float | None = video.fps

    def use_custom_prompt(self, dataset: str) -> bool:
        """Prompts are the data set's."""
        return False

    def set_dump_image(self, dump_image: Any) -> None:
        """For prompts of the model's own, which there are none of."""

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """The answer to a message: a text, or a list of texts and `{type, value}`."""
        parts = [message] if isinstance(message, (str, Mapping)) else list(message)
        return self.generate_inner([{"type": "text", "value": p} if isinstance(p, str) else p for p in parts], dataset)

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to a list of `{type: text, image or video, value, role?}`; an empty one to what cannot be asked.

        Raises:
            VisdError: another type of part.
        """
        turns = [
            (role, [_part(part) for part in message if part.get("role", "user") == role]) for role in ("system", "user")
        ]
        question = question_of(f"{dataset}_{derive_seed(repr(message))}", [turn for turn in turns if turn[1]])
        section = replace(self.answerer.section, video=self.video())
        seeds = [derive_seed("vlmevalkit", question.id)]
        (reply,) = self.answerer.ask([question], section, ANYWHERE, self.answerer.sampling({}), seeds)
        if reply.drop is not None:
            print(f"visd: a question cannot be asked and counts as unanswered: {reply.drop}")
        return self.answerer.shown(reply)

    def video(self) -> VideoSection:
        """Frames as the data set wants them, by number or by rate; both are set where it has no wish."""
        video = self.answerer.settings.video
        if self.fps is None and self.nframe:
            return replace(video, fps=EVENLY, max_frames=self.nframe, min_frames=min(video.min_frames, self.nframe))
        return replace(video, fps=self.fps or video.fps)


def _part(part: Mapping[str, Any]) -> Media | str:
    kind, value = part["type"], part["value"]
    if kind == "text":
        return str(value)
    if kind not in ("image", "video"):
        raise VisdError(f"a message holds {kind}, and visd's models take text, images and videos.")
    return Media(kind, str(value).removeprefix("file://"))
