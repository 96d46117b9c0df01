"""Records that are the same, or nearly, in one set or in two: by the fingerprints of their videos and by their questions.

Each record leaves one row of 54 bytes (`row_of`); `find_pairs` compares the rows of a million records without their texts
and gives the pairs whose texts are worth reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.fingerprints import FRAMES, alike
from data_tools.io.shards import id_hash
from data_tools.probed import Probed
from visd.reward.parse import normalise
from visd.types import Sample

Likeness = Literal["same", "near", "video"]

ROW = np.dtype(
    [("file", "u2"), ("row", "u4"), ("id", "u8"), ("video", "u8"), ("same", "u8"), ("answer", "u8"), ("words", "u8")]
    + [("sketch", "u8")]
)
NEAR_SKETCH = 18
"""Bits of 64 by which the sketches of two questions may differ for their words to be compared."""
LARGEST_GROUP = 2000
"""Records of one video up to which each is compared with each; beyond it only with so many next in order of sketches."""
NEAR_WORDS = 0.8
"""Share of the words of two questions that both have, from which on they are nearly the same."""


def row_of(sample: Sample, file: int, row: int) -> tuple[int, ...]:
    """What is kept of a record; `file` and `row` say where it stands."""
    words = question_words(sample)
    options = "\x1f".join(normalise(option) for option in sample.answer.options)
    media = "\x1f".join(f"{item.path} {item.start} {item.end}" for item in sample.media)
    text = " ".join(normalise(message.content) for message in sample.messages)
    return (
        file,
        row,
        id_hash(f"{file}\x1f{sample.id}"),
        id_hash(sample.media[0].path) if sample.media else 0,
        id_hash("\x1e".join((media, text, options))),
        id_hash(repr(sample.answer.value)),
        id_hash(f"{len(sample.media)} {' '.join(sorted(words))}\x1e{options}"),
        sketch(words),
    )


def question_words(sample: Sample) -> frozenset[str]:
    """Words of the question and its options."""
    text = " ".join((*(m.content for m in sample.messages if m.role != "system"), *sample.answer.options))
    return frozenset(normalise(text).split()) - {"video", "image"}


def sketch(words: frozenset[str]) -> int:
    """64 bits that differ the less the more words two questions share (Charikar, SimHash, 2002)."""
    if not words:
        return 0
    hashes = np.array([_word_hash(word) for word in words], np.uint64)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(words), 8), axis=1)
    return int(np.packbits(2 * bits.sum(axis=0, dtype=np.int64) > len(words)).view(np.uint64)[0])


_word_hash = lru_cache(50_000)(id_hash)


def shared_words(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard index; 1 for two questions without words."""
    return len(a & b) / len(a | b) if a or b else 1.0


@dataclass(frozen=True)
class Pair:
    """Two rows of the table that are alike, the earlier one first."""

    first: int
    second: int
    likeness: Likeness  # same: media and question; near: perhaps; video: the video at least
    across: bool  # one is of the training sets, the other of the evaluation sets


def find_pairs(table: NDArray[Any], training: int, probed: Probed | None) -> Iterator[Pair]:
    """For each record at most one pair with an earlier one of its own side, and one of the other side.

    Args:
        table: rows in order of files.
        training: number of the first file that is an evaluation set.
        probed: fingerprints of videos; without it, a video is known by its path alone.
    """
    later_side = table["file"] >= training
    seen: set[tuple[int, bool]] = set()
    for pair in _equal(table["same"], later_side, "same"):
        seen.add((pair.second, pair.across))
        yield pair
    text_only = table["video"] == 0
    places = np.flatnonzero(text_only)
    for pair in _equal(table["words"][places], later_side[places], "near"):
        moved = Pair(int(places[pair.first]), int(places[pair.second]), "near", pair.across)
        if (moved.second, moved.across) not in seen:
            yield moved
    videos = _video_labels(table["video"], probed)
    for pair in _near_in_videos(table["sketch"], videos, later_side):
        if (pair.second, pair.across) not in seen:
            yield pair


def _equal(keys: NDArray[np.uint64], later_side: NDArray[np.bool_], likeness: Likeness) -> Iterator[Pair]:
    for group in groups_of(keys):
        sides = later_side[group]
        for members in (group[~sides], group[sides]):
            for second in members[1:].tolist():
                yield Pair(int(members[0]), second, likeness, False)
        if sides.any() and not sides.all():
            for second in group[sides].tolist():
                yield Pair(int(group[0]), second, likeness, True)


def groups_of(keys: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Places of equal keys, in order, for every key that stands more than once."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else np.empty(0, int)
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist()):
        yield order[start:end]


def _video_labels(videos: NDArray[np.uint64], probed: Probed | None) -> NDArray[np.int64]:
    """[N] the number of each record's video, the same for copies; -1 without one."""
    distinct, places = np.unique(videos, return_inverse=True)
    labels = np.arange(len(distinct))
    if probed is not None:
        prints = np.zeros((len(distinct), FRAMES), np.uint64)
        known = probed.fingerprints(distinct, prints)
        labels[known] = known[alike(prints[known])]
    return np.where(videos == 0, -1, labels[places])


def _near_in_videos(
    sketches: NDArray[np.uint64], videos: NDArray[np.int64], later_side: NDArray[np.bool_]
) -> Iterator[Pair]:
    for group in groups_of(videos):
        if videos[group[0]] < 0:
            continue
        if len(group) > LARGEST_GROUP:
            group = group[np.argsort(sketches[group], kind="stable")]
        for number in range(1, len(group)):
            before = group[max(0, number - LARGEST_GROUP) : number]
            second = int(group[number])
            distance = np.bitwise_count(sketches[before] ^ sketches[second])
            for across in (False, True):
                fitting = np.flatnonzero((later_side[before] != later_side[second]) == across)
                if not len(fitting):
                    continue
                nearest = fitting[np.argmin(distance[fitting])]
                near = distance[nearest] <= NEAR_SKETCH
                if near or across:
                    first = int(before[nearest])
                    yield Pair(min(first, second), max(first, second), "near" if near else "video", across)
