"""Questions to `Prompt`s: ids, pixels and positions, made once and never left to a library's defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from visd.config import FramesSection, PromptSection, VideoSection
from visd.media.answer import Showing
from visd.media.budget import CannotFit, reduced_settings
from visd.media.cache import FrameCache
from visd.media.chat import PLACEHOLDER, check_media, find_suffix
from visd.media.errors import DecodeError
from visd.media.families import family_from_config
from visd.media.families.base import Family, MediumSize
from visd.media.layout import LAYOUTS
from visd.media.video import DecodeCounter
from visd.types import DroppedSample, Frames, Media, Message, Prompt, VisdError


class PromptProcessor:
    """A model's own chat template, tokenizer and pixel normalisation around our frames and our positions.

    Decoded frames are kept, prompts are not: normalising frames again costs milliseconds, while the pixels of a
    prompt take at least four times the memory of its frames. Callers keep a step's prompts for that step.
    """

    def __init__(self, model_path: str, family: Family, hf: Any, section: PromptSection, frames: FrameCache | None):
        """Use `load`. `hf` is the Hugging Face processor, or the tokenizer of a text-only family."""
        self.model_path = model_path
        self.family = family
        self.section = section
        self.tokenizer: Any = hf.tokenizer if family.has_media else hf
        self._hf = hf
        self._frames = frames
        self._layout = LAYOUTS[section.layout]
        self.counters = frames.counters if frames is not None else DecodeCounter()  # of this process, so far
        self._suffix = find_suffix(hf)
        self._suffix_ids: list[int] = self.tokenizer(self._suffix, add_special_tokens=False)["input_ids"]
        self._reserved = _reserved_tokens(self.tokenizer)

    @classmethod
    def load(
        cls,
        model_path: str,
        section: PromptSection,
        root: Path,
        frames: FramesSection,
        shared: FrameCache | None = None,
    ) -> PromptProcessor:
        """The processor of a Hugging Face folder or hub id.

        Args:
            root: every media path lies below it.
            frames: where media are decoded and kept.
            shared: another processor's cache, used instead of one's own where both want frames of the same sizes.

        Raises:
            VisdError: no such model, an architecture that is not supported, or an unusable chat template.
        """
        try:
            config = AutoConfig.from_pretrained(model_path)
            has_media = family_from_config(config).has_media
            hf = (AutoProcessor if has_media else AutoTokenizer).from_pretrained(model_path)
        except (OSError, ValueError) as error:
            raise VisdError(f"model.path: {model_path!r} has no config and processor to load ({error}).") from error
        family = family_from_config(config, hf.tokenizer if has_media else hf)
        if not has_media:
            return cls(model_path, family, hf, section, None)
        family.check_processor(hf, model_path)
        if section.key_frames and family.even_frames and section.layout == "native":
            raise VisdError(
                f"prompt.key_frames: {model_path!r} is told one rate for all frames of a video, so that frames between "
                "them would move all others in time; take prompt.layout=timestamped_frames."
            )
        sizes, factor = family.sizes(section.video), family.pixel_factor
        if shared is not None and (shared.settings, shared.factor) == (sizes, factor):
            return cls(model_path, family, hf, section, shared)
        return cls(model_path, family, hf, section, FrameCache(root, sizes, factor, frames))

    def save(self, folder: Path) -> None:
        """Write tokenizer, chat template and pixel settings into a Hugging Face folder."""
        self._hf.save_pretrained(folder)

    @property
    def frame_cache(self) -> FrameCache | None:
        """Where this processor's frames are; None for a text-only model."""
        return self._frames

    @property
    def video_limits(self) -> VideoSection:
        """`prompt.video` with sizes of frames that this model can take."""
        return self.family.sizes(self.section.video)

    def render(self, messages: Sequence[Message], sizes: Sequence[MediumSize] = ()) -> str:
        """A chat as the model's template writes it, the assistant's turn opened, with placeholders for its media.

        Args:
            sizes: of the chat's media.
        """
        chat = self._layout.chat(messages, sizes)
        return str(self._hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def count_tokens(self, messages: Sequence[Message], sizes: Sequence[MediumSize]) -> int:
        """Tokens of a chat's prompt, by the sizes of its media alone."""
        return self.family.prompt_tokens(self.render(messages, sizes), self.shown(sizes), self.tokenizer)

    def shown(self, sizes: Sequence[MediumSize]) -> list[MediumSize]:
        """The media of the prompt that a sample's media become."""
        return [part for size in sizes for part in self._layout.sizes(size)]

    def prefetch(self, media: Iterable[Media]) -> None:
        """Have media decoded that `process` will need next."""
        if self._frames is not None:
            self._frames.prefetch(media)

    def frames(self, media: Media) -> Frames:
        """The frames of a medium as the model is given them.

        Raises:
            DecodeError: the file cannot give them.
        """
        assert self._frames is not None, "a text-only model is given no media"
        return self._frames.get(media)

    def process(self, sample_id: str, messages: Sequence[Message], media: Sequence[Media]) -> Prompt:
        """The prompt of a chat that ends with the user's turn.

        Raises:
            DroppedSample: an unusable file, placeholders that do not fit the media, reserved tokens in the text, or
                more tokens than `prompt.max_tokens`.
        """
        self._check(sample_id, messages, media)
        decoded = [self._decode(sample_id, item) for item in media]
        tokens, reduced = self.count_tokens(messages, _sizes(media, decoded)), ""
        if tokens > self.section.max_tokens:
            decoded, tokens = self._reduced(sample_id, messages, media, decoded, tokens)
            reduced = self.section.over_budget
        prompt = self.assemble(sample_id, messages, media, decoded)
        if len(prompt) != tokens:
            raise VisdError(
                f"sample {sample_id!r}: its prompt was counted as {tokens} tokens and has {len(prompt)}; "
                f"the record of its family does not know how {self.model_path!r} writes its media."
            )
        return dataclasses.replace(prompt, reduced=reduced)

    def insert_text(self, prompt: Prompt, text: str) -> Prompt:
        """The prompt with `text` put at the end of the user's turn; all other ids and the pixels stay as they are.

        Special tokens spelled out in `text` are read as plain text: they can neither end the turn nor stand for media.
        """
        added = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_tensors="pt")
        start, ids = prompt.suffix_start, added["input_ids"][0].long()
        types = prompt.mm_token_type_ids
        token_types = torch.cat([types[:start], types.new_zeros(len(ids)), types[start:]])
        return dataclasses.replace(
            prompt,
            text=prompt.text.removesuffix(self._suffix) + text + self._suffix,
            input_ids=torch.cat([prompt.input_ids[:start], ids, prompt.input_ids[start:]]),
            mm_token_type_ids=token_types,
            position_ids=self.family.positions(token_types, prompt.vision, self.section.position_rule),
            suffix_start=start + len(ids),
        )

    def show(self, before: str, frames: Sequence[Frames], after: str) -> Showing:
        """Frames of one picture each between two texts, as they are written into an answer.

        Args:
            before, after: fixed words of ours; special tokens in them would count as such.
        """
        pictures = self.family.image_text(self.tokenizer) * len(frames)
        images = [Media("image", "")] * len(frames)
        ids, types, vision = self.family.process(self._hf, before + pictures + after, images, frames)
        return Showing(tuple(ids.tolist()), types, vision, tuple(frame.times[0] for frame in frames))

    def _check(self, sample_id: str, messages: Sequence[Message], media: Sequence[Media]) -> None:
        if not messages or messages[-1].role != "user":
            raise DroppedSample(sample_id, "bad_messages", "its messages must end with the user's.")
        if problem := check_media(messages, media):
            raise DroppedSample(sample_id, "media_mismatch", problem)
        if media and not self.family.has_media:
            raise DroppedSample(
                sample_id, "media_unsupported", f"it has media, but {self.model_path!r} is a text-only model."
            )
        for message in messages:
            text = PLACEHOLDER.sub("", message.content)  # which may be a special token of the model too
            if found := [token for token in self._reserved if token in text]:
                raise DroppedSample(
                    sample_id, "reserved_token", f"its text spells out the special token {found[0]!r}; remove it."
                )

    def _reduced(
        self,
        sample_id: str,
        messages: Sequence[Message],
        media: Sequence[Media],
        decoded: Sequence[Frames],
        tokens: int,
    ) -> tuple[list[Frames], int]:
        """Frames by the rule `prompt.over_budget` with which the prompt fits, and its tokens."""
        sizes, limit, rule = _sizes(media, decoded), self.section.max_tokens, self.section.over_budget
        said = f"its prompt has {tokens} tokens, more than prompt.max_tokens = {limit}"
        if rule == "drop":
            advice = "lower prompt.video.fps, max_frames or max_pixels, or raise the limit."
            raise DroppedSample(sample_id, "prompt_too_long", f"{said}; {advice}")
        target, frames = limit, list(decoded)
        while tokens > limit:
            try:
                settings = reduced_settings(
                    rule,
                    sizes,
                    self.video_limits,
                    self.family,
                    self._layout,
                    partial(self.count_tokens, messages),
                    target,
                )
            except CannotFit as error:
                raise DroppedSample(sample_id, "prompt_too_long", f"{said}, {error}.") from None
            frames = [self._decode(sample_id, item, own) for item, own in zip(media, settings, strict=True)]
            tokens = self.count_tokens(messages, _sizes(media, frames))
            # Times between known frames were guessed: where a file's rate varies, a timestamp may take a digit more.
            target -= max(0, tokens - limit)
        return frames, tokens

    def _decode(self, sample_id: str, media: Media, settings: VideoSection | None = None) -> Frames:
        assert self._frames is not None
        try:
            return self._frames.get(media, settings)
        except DecodeError as error:
            raise DroppedSample(sample_id, error.reason, f"{media.kind} {error}") from error

    def assemble(
        self, sample_id: str, messages: Sequence[Message], media: Sequence[Media], decoded: Sequence[Frames]
    ) -> Prompt:
        """The prompt of a chat whose media are these frames, however long it is."""
        text = self.render(messages, _sizes(media, decoded))
        pairs = [
            pair for medium, frames in zip(media, decoded, strict=True) for pair in self._layout.media(medium, frames)
        ]
        ids, types, vision = self.family.process(
            self._hf, text, [medium for medium, _ in pairs], [frames for _, frames in pairs]
        )
        suffix_start = len(ids) - len(self._suffix_ids)
        if not text.endswith(self._suffix) or ids[suffix_start:].tolist() != self._suffix_ids:
            raise VisdError(
                f"sample {sample_id!r}: the chat template of {self.model_path!r} opens the assistant's turn differently "
                f"here than after a plain message ({self._suffix!r}), so text cannot be inserted before it."
            )
        return Prompt(
            sample_id=sample_id,
            text=text,
            input_ids=ids,
            mm_token_type_ids=types,
            position_ids=self.family.positions(types, vision, self.section.position_rule),
            vision=vision,
            frame_times=tuple(frames.times for frames in decoded),
            suffix_start=suffix_start,
            kinds=tuple(medium.kind for medium, _ in pairs),
            frames=tuple(frames for _, frames in pairs),
            media=tuple(media),
        )


def _sizes(media: Sequence[Media], decoded: Sequence[Frames]) -> list[MediumSize]:
    return [MediumSize.of(item, frames) for item, frames in zip(media, decoded, strict=True)]


def _reserved_tokens(tokenizer: Any) -> tuple[str, ...]:
    return tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
