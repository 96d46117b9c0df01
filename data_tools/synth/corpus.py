"""Texts that hold every word, number and tag of the small world, to train a tokenizer on."""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.synth.samples import choose_drafts, video_sample
from data_tools.synth.scene import COLOURS, SHAPES, cell_name, draw_scene
from data_tools.synth.text import NAMES, draw_problem, text_sample
from visd.data.manifest import LETTERS
from visd.data.prompts import CLAIMS, INSTRUCTIONS
from visd.data.targets import sft_target
from visd.seeding import generator
from visd.teacher.view import all_template_texts, render, verified
from visd.types import Sample

SCENES = 300
PROBLEMS = 300


def texts() -> Iterator[str]:
    """The same texts at every call."""
    yield "system\nuser\nassistant\n"
    yield from _enumerations()
    yield from (*INSTRUCTIONS.values(), CLAIMS)
    for text in all_template_texts():
        yield from (text, f" {text}")
    for sample in samples():
        yield from (message.content for message in sample.messages)
        yield render(verified(sample, None), ("answer", "window", "key_times"), 0)
        yield sft_target(sample)
        yield sft_target(sample, verified=True)


def samples() -> Iterator[Sample]:
    """Questions of all families and answer types."""
    options = {"wrong_share": 0.5, "hasty_share": 0.0, "letter_share": 0.3}
    for number in range(SCENES):
        rng = generator("corpus", "video", number)
        scene = draw_scene(rng)
        for draft in choose_drafts(scene, rng, 12):
            yield video_sample(scene, draft, rng, sample_id=f"corpus-{number}", path="video.mp4", **options)
    for number in range(PROBLEMS):
        rng = generator("corpus", "text", number)
        yield text_sample(draw_problem(rng), rng, sample_id=f"corpus-text-{number}", **options)


def _enumerations() -> Iterator[str]:
    """Everything the samples might miss: each alone and after a space."""
    words = [*COLOURS, *SHAPES, *NAMES, *LETTERS[:6]]
    words += [str(n) for n in range(21)] + [f"{n}s" for n in range(10)]
    words += [cell_name((x, y)) for x in range(3) for y in range(3)]
    words += [f"{n / 10:.1f}" for n in range(101)]
    for word in words:
        yield word
        yield f" {word}"
    for n in range(21):
        coordinate = str(n / 20)
        yield from (
            f"[{coordinate},",
            f"{coordinate},",
            f" {coordinate},",
            f"{coordinate}]",
            f" {coordinate}]",
            coordinate,
        )
    yield "<0.5 seconds>"
