"""Which rows go where: choices by hashes of names and a seed, so that they depend on neither order nor number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.fingerprints import FRAMES, Groups, alike
from data_tools.io.manifests import chunk_samples, dumps
from data_tools.io.rows import Chunk
from data_tools.io.shards import ShardReport, ShardResult, id_hash
from data_tools.likeness import groups_of, question_words
from data_tools.probed import Probed
from visd.data.manifest import sample_to_record
from visd.seeding import derive_seed
from visd.types import Sample, VisdError


def lot(seed: int, name: str) -> int:
    """A number of 63 bits that stands for chance."""
    return derive_seed("lot", seed, name)


def smallest(lots: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    """[N], True for the `count` smallest; all if there are fewer."""
    chosen = np.zeros(len(lots), bool)
    chosen[np.argsort(lots, kind="stable")[:count]] = True
    return chosen


def quotas(count: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `count`, in proportion to the weights (largest remainders)."""
    total = sum(weights)
    exact = [count * weight / total for weight in weights]
    whole = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for place in order[: count - sum(whole)]:
        whole[place] += 1
    return whole


def filled(count: int | None, weights: Sequence[float], there: Sequence[int]) -> list[int]:
    """How many to take of each source, in proportion to the weights and without taking any twice.

    Args:
        count: in all; None takes as many as the weights allow.
        there: how many each source has.

    Raises:
        VisdError: there are not so many.
    """
    if count is None:
        count = int(min(n * sum(weights) / w for n, w in zip(there, weights, strict=True) if w) + 1e-9)
    wanted = quotas(count, weights)
    if short := [i for i, (want, n) in enumerate(zip(wanted, there, strict=True)) if want > n]:
        most = filled(None, weights, there)
        raise VisdError(
            f"{count} records in these weights need {wanted[short[0]]} of a source that has {there[short[0]]}; "
            f"at most {sum(most)} can be had, or give it less weight"
        )
    return wanted


def parse_weights(items: Sequence[str], what: str) -> dict[str, float]:
    """`name=number`, separated by commas or given apart.

    Raises:
        VisdError: another form, a weight that is negative or none that is positive.
    """
    weights: dict[str, float] = {}
    for item in (part for text in items for part in text.split(",")):
        name, _, value = item.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise VisdError(f"{what} {item!r}: write NAME=NUMBER") from None
        if not name or not 0 <= weights[name] < float("inf"):
            raise VisdError(f"{what} {item!r}: write NAME=NUMBER, not negative")
    if not sum(weights.values()):
        raise VisdError(f"{what}: give one positive number at least")
    return weights


ROW = np.dtype([("first", "?"), ("name", "u8"), ("lot", "u8"), ("kind", "u8")])
"""One row a name of a record; `first` marks where a record begins."""


@dataclass(frozen=True)
class Rows:
    """The task of a shard: records as lines, and what is needed to choose among them."""

    seed: int
    kind: str = ""  # the field by which records are told apart; empty: none
    together: str = ""  # a field whose records stay together, besides those of a video

    def __call__(self, chunk: Chunk) -> ShardResult:
        result, rows, kinds = ShardResult([], ShardReport()), [], Counter[str]()
        for where, sample in chunk_samples(chunk):
            result.lines.append(dumps(sample_to_record(sample)))
            result.ids.append(sample.id)
            kind = field_of(sample, self.kind, where) if self.kind else ""
            kinds[kind] += 1
            for number, name in enumerate(self._names(sample, where)):
                rows.append((not number, id_hash(name), lot(self.seed, sample.id), id_hash(kind)))
        result.report.rows = result.report.written = len(result.lines)
        result.report.notes = dict(kinds) if self.kind else {}
        result.table = np.array(rows, ROW)
        return result

    def _names(self, sample: Sample, where: str) -> list[str]:
        """Records that have one in common stay together: videos, or the same question where there are none."""
        names = [item.path for item in sample.media] or [f"text\x1f{' '.join(sorted(question_words(sample)))}"]
        return [*names, f"together\x1f{field_of(sample, self.together, where)}"] if self.together else names


FIELDS = "source, family, answer.type or meta.NAME"


def field_of(sample: Sample, name: str, where: str) -> str:
    """The value of a field that records are told apart by.

    Raises:
        VisdError: there is no such field, or the record does not have it.
    """
    if name in ("source", "family"):
        return str(getattr(sample, name))
    if name == "answer.type":
        return sample.answer.type
    if not name.startswith("meta."):
        raise VisdError(f"{name!r} is no field to tell records apart by; take {FIELDS}")
    value = sample.meta.get(name.removeprefix("meta."))
    if value is None or isinstance(value, (dict, list)):
        raise VisdError(f"{where}: sample {sample.id!r}: field {name!r} holds no single value; add it or take another")
    return str(value)


def together(table: NDArray[Any], probed: Probed | None) -> NDArray[np.int64]:
    """[records] the number of each record's group: those joined by a chain of common names.

    Args:
        table: rows of `ROW`.
        probed: joins videos that are copies of each other as well.
    """
    records = np.cumsum(table["first"]) - 1
    distinct, places = np.unique(table["name"], return_inverse=True)
    if probed is not None:
        prints = np.zeros((len(distinct), FRAMES), np.uint64)
        known = probed.fingerprints(distinct, prints)
        merged = np.arange(len(distinct))
        merged[known] = known[alike(prints[known])]
        places = merged[places]
    groups = Groups(int(table["first"].sum()))
    for same in groups_of(places):
        for record in records[same[1:]].tolist():
            groups.join(int(records[same[0]]), record)
    return groups.labels()


def shares_of(labels: NDArray[np.int64], lots: NDArray[np.uint64], shares: Mapping[str, float]) -> NDArray[np.int64]:
    """[N] the split of each record: whole groups, in the order of their lots, until a split has its share of records.

    Args:
        labels: [N] the group of each record.
        lots: [N] a group's lot is the smallest of its records'.
        shares: by name of the split; they are scaled to sum to 1.
    """
    distinct, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    own = np.full(len(distinct), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(own, places, lots)
    order = np.argsort(own, kind="stable")
    middles = np.empty(len(distinct))
    ends = np.cumsum(counts[order])
    middles[order] = (ends - counts[order] / 2) / len(labels)
    bounds = np.cumsum(list(shares.values())) / sum(shares.values())
    return np.asarray(np.searchsorted(bounds, middles, side="right").clip(max=len(shares) - 1)[places])
