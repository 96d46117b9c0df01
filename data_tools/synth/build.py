"""A world on disk: videos and manifests."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_tools.synth.render import write_video
from data_tools.synth.samples import choose_drafts, video_sample
from data_tools.synth.scene import Scene, draw_scene
from data_tools.synth.splits import draw
from data_tools.synth.text import draw_problem, text_sample
from visd import strict_json
from visd.data.manifest import sample_to_record
from visd.types import Sample, VisdError

FORMAT = 5
"""Raised whenever the same settings give other bytes."""
WORTH_STARTING = 100
"""Videos that are worth the second that starting processes takes."""


@dataclass(frozen=True)
class WorldSettings:
    """All that decides the bytes of a world's manifests."""

    seed: int = 0
    train: int = 200  # questions
    validation: int = 50
    test: int = 100
    careful: int = 0  # questions with reasoning traces that look and conclude what is right
    sft: int = 400  # questions with the traces of an imperfect annotator
    kind: str = "video"  # video, text or mixed (both)
    questions_per_video: int = 6
    wrong_share: float = 0.5  # of the reasoning traces of sft_train that look, conclude something wrong
    hasty_share: float = 0.0  # of the reasoning traces of sft_train do not look and conclude a guess
    letter_share: float = 0.2  # of the questions that can be multiple choice are


@dataclass(frozen=True)
class Built:
    """What a world holds."""

    videos: int
    reused: int  # videos that were there already
    questions: dict[str, int]  # by manifest


Progress = Callable[[int, int, str], None]
"""(done, total, what), called after each video or manifest."""


def build(
    out: Path, settings: WorldSettings, progress: Progress = lambda done, total, what: None, workers: int = 1
) -> Built:
    """Write a world, or complete one of the same settings.

    Args:
        workers: processes that write videos.

    Raises:
        VisdError: settings that make no world, or `out` holds a world of other settings.
    """
    _check(settings)
    _claim(out, settings)
    counts = {
        "careful_train": settings.careful,
        "sft_train": settings.sft,
        "train": settings.train,
        "validation": settings.validation,
        "test": settings.test,
    }
    questions: dict[str, int] = {}
    videos = reused = 0
    total = sum(-(-n // settings.questions_per_video) for n in counts.values())
    for split, count in counts.items():
        if settings.kind in ("video", "mixed"):
            entries = list(_video_split(split, count, settings))
            missing = [(scene, out / path) for scene, path, _ in entries if not (out / path).exists()]
            reused += len(entries) - len(missing)
            videos += len(entries)
            for number, _ in enumerate(_written(missing, workers), 1):
                progress(videos - len(missing) + number, total, f"videos of {split}")
            samples = [sample for _, _, found in entries for sample in found]
            questions[f"{split}.jsonl"] = _write(out / f"{split}.jsonl", samples)
        if settings.kind in ("text", "mixed"):
            questions[f"text_{split}.jsonl"] = _write(out / f"text_{split}.jsonl", _text_split(split, count, settings))
    return Built(videos, reused, questions)


def _written(missing: list[tuple[Scene, Path]], workers: int) -> Iterator[None]:
    """Write videos, in this process or in several; yields after each."""
    if workers == 1 or len(missing) < WORTH_STARTING:
        for scene, target in missing:
            write_video(scene, target)
            yield
        return
    # Fresh processes: this one may run threads, a progress bar's for example, which a fork would cut off.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        scenes, targets = zip(*missing, strict=True)
        yield from pool.map(write_video, scenes, targets, chunksize=8)


def _check(settings: WorldSettings) -> None:
    if settings.kind not in ("video", "text", "mixed"):
        raise VisdError(f"kind: {settings.kind!r} is not one of video, text, mixed")
    for name in ("train", "validation", "test", "careful", "sft", "questions_per_video"):
        if getattr(settings, name) < (1 if name == "questions_per_video" else 0):
            raise VisdError(f"{name}: {getattr(settings, name)} is too small")
    for name in ("wrong_share", "hasty_share", "letter_share"):
        if not 0 <= getattr(settings, name) <= 1:
            raise VisdError(f"{name}: {getattr(settings, name)} must lie between 0 and 1")


def _claim(out: Path, settings: WorldSettings) -> None:
    """Note the settings in the folder, or check that they are the ones noted."""
    note = out / "world.json"
    wanted = {"format": FORMAT, **dataclasses.asdict(settings)}
    if note.exists():
        try:
            found = strict_json.load(note)
        except strict_json.JsonError as error:
            raise VisdError(f"{note}: is not JSON; delete the folder {str(out)!r} and build the world again") from error
        if found != wanted:
            differing = sorted(k for k in wanted if not isinstance(found, dict) or found.get(k) != wanted[k])
            raise VisdError(
                f"{out} holds a world of other settings ({', '.join(differing)}); choose another folder or delete it"
            )
        return
    _replace(note, strict_json.dumps(wanted, indent=1) + "\n")


def _video_split(split: str, count: int, settings: WorldSettings) -> Iterator[tuple[Scene, str, list[Sample]]]:
    """(scene, path, samples) of each video of a split."""
    left = count
    for number, (scene, rng) in enumerate(draw(split, settings.seed, "video", draw_scene)):
        if left <= 0:
            return
        path = f"videos/{split}_{number:05d}.mp4"
        samples = [
            video_sample(
                scene,
                draft,
                rng,
                sample_id=f"{split}-{number:05d}-{index}",
                path=path,
                wrong_share=settings.wrong_share if split == "sft_train" else 0.0,
                hasty_share=settings.hasty_share if split == "sft_train" else 0.0,
                letter_share=settings.letter_share,
            )
            for index, draft in enumerate(choose_drafts(scene, rng, min(settings.questions_per_video, left)))
        ]
        left -= len(samples)
        yield scene, path, samples


def _text_split(split: str, count: int, settings: WorldSettings) -> list[Sample]:
    samples: list[Sample] = []
    for problem, rng in draw(split, settings.seed, "text", draw_problem):
        if len(samples) == count:
            break
        imperfect = split == "sft_train"
        samples.append(
            text_sample(
                problem,
                rng,
                sample_id=f"text-{split}-{len(samples):05d}",
                wrong_share=settings.wrong_share if imperfect else 0.0,
                hasty_share=settings.hasty_share if imperfect else 0.0,
                letter_share=settings.letter_share,
            )
        )
    return samples


def _write(path: Path, samples: list[Sample]) -> int:
    lines = [strict_json.dumps(sample_to_record(sample), separators=(",", ":")) + "\n" for sample in samples]
    _replace(path, "".join(lines))
    return len(samples)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
