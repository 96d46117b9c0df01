"""`python -m data_tools cache`: decode the videos of a run ahead of it, into the store that the run will read.

    python -m data_tools cache experiment=visd_qwen2_5_vl_7b data.frames.store=/data/frames

takes the arguments of scripts/train.py, so that frames are chosen and sized as the run will. What is there is kept, so
it can be stopped and started again, and several machines can fill one store.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm
from transformers import AutoConfig

from data_tools.io.cli import guarded, tool_parser
from visd.cli import compose_config
from visd.config import ConfigError, RunConfig, load
from visd.media.cache import FrameCache
from visd.media.errors import DecodeError
from visd.media.families import family_from_config
from visd.train.run import load_samples, training_samples
from visd.types import Media

AHEAD = 64
"""Files that are given to the decoders together."""


@dataclass
class Filled:
    """What became of the media."""

    media: int = 0
    decoded: int = 0  # videos; the others were there
    problems: list[DecodeError] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    parser = tool_parser("cache", __doc__)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="arguments of scripts/train.py")
    parser.add_argument("--num-workers", type=int, help="processes, instead of data.frames.workers")
    chosen = parser.parse_intermixed_args(arguments)
    if chosen.num_workers is not None:
        chosen.settings.append(f"data.frames.workers={chosen.num_workers}")
    return guarded(lambda: _main(chosen.settings))


def _main(settings: list[str]) -> int:
    filled = fill(load(compose_config(settings)))
    for problem in filled.problems:
        print(f"{problem.reason}: {problem}")
    reasons = dict(sorted(Counter(problem.reason for problem in filled.problems).items()))
    print(f"{filled.media} media: {filled.decoded} videos decoded, {len(filled.problems)} unusable {reasons or ''}")
    return 1 if filled.problems else 0


def fill(config: RunConfig) -> Filled:
    """Decode every medium of every split that is not in the store.

    Raises:
        VisdError: no store is named, the model is text-only, a manifest is wrong, or the store cannot be written.
    """
    if not config.data.frames.store:
        raise ConfigError("data.frames.store: name the folder that is to be filled.")
    family = family_from_config(AutoConfig.from_pretrained(config.model.path))
    if not family.has_media:
        raise ConfigError(f"model.path: {config.model.path!r} is a text-only model and needs no frames.")
    frames = FrameCache(
        Path(config.data.root),
        family.sizes(config.prompt.video),
        family.pixel_factor,
        replace(config.data.frames, cache_mb=0),
    )
    media = distinct_media(config)
    filled = Filled(len(media))
    for number, item in enumerate(tqdm(media, desc="decoding", disable=not config.tracking.progress)):
        if number % AHEAD == 0:
            frames.prefetch(media[number : number + 2 * AHEAD])
        try:
            frames.get(item)
        except DecodeError as error:
            filled.problems.append(error)
    filled.decoded = frames.counters.videos_decoded
    return filled


def distinct_media(config: RunConfig) -> list[Media]:
    """Every file and clip of the manifests once, in order."""
    splits = [split for split in ("train", "validation", "test") if getattr(config.data, split)]
    read = {split: training_samples(config)[0] if split == "train" else load_samples(config, split) for split in splits}
    samples = [sample for split in splits for sample in read[split]]
    return list(dict.fromkeys(item for sample in samples for item in sample.media))
