"""Rows that begin alike, run through the model once: which they are, and the inputs of a forward over them.

A bundle is a sample's rows with what all their prompts begin with as its prefix. For a student that is the whole prompt;
a teacher's prompts differ from the first token of the privileged text on, and what follows it belongs to the suffix.
Several bundles lie in one sequence without padding, and each token keeps the positions of its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visd.policy.attention import layout_of
from visd.policy.batch import (
    ForwardInputs,
    Row,
    concatenate_features,
    media_of,
    response_positions,
    response_types,
    scored_tokens,
    shown_features,
)
from visd.types import Prompt, VisdError


@dataclass(frozen=True)
class Bundle:
    """Rows that share a prefix."""

    rows: tuple[int, ...]  # indices
    prefix: int  # tokens at the beginning of each of the rows' prompts, all media among them

    def tokens(self, rows: Sequence[Row]) -> int:
        """Tokens that go through the model."""
        return self.prefix + sum(len(rows[i]) - self.prefix for i in self.rows)


def bundles_of(rows: Sequence[Row]) -> list[Bundle]:
    """Every row in one bundle, in order of the bundles' first rows.

    Rows of one sample stay together if they have the same media and begin alike at least until the media end;
    otherwise each is a bundle of its own.
    """
    by_sample: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(rows):
        by_sample.setdefault((row.prompt.sample_id, id(row.prompt.vision)), []).append(i)
    bundles: list[Bundle] = []
    for same in by_sample.values():
        prompts = [rows[i].prompt for i in same]
        prefix = common_prefix(prompts)
        if prefix > 0 and all(not bool((prompt.mm_token_type_ids[prefix:] > 0).any()) for prompt in prompts):
            bundles.append(Bundle(tuple(same), prefix))
        else:
            bundles += [Bundle((i,), len(rows[i].prompt)) for i in same]
    return bundles


def common_prefix(prompts: Sequence[Prompt]) -> int:
    """Leading tokens that are the same in all prompts: ids, types and positions."""
    first, length = prompts[0], len(prompts[0])
    for other in prompts[1:]:
        if other is first:
            continue
        length = min(length, len(other))
        same = first.input_ids[:length] == other.input_ids[:length]
        same &= first.mm_token_type_ids[:length] == other.mm_token_type_ids[:length]
        same &= (first.position_ids[:, :length] == other.position_ids[:, :length]).all(0)
        length = int(same.long().cumprod(0).sum())
    return length


def plan_bundles(rows: Sequence[Row], budget: int, describe: Callable[[int], str]) -> tuple[list[list[int]], int, int]:
    """Group rows so that the tokens of a micro-batch stay within `budget`; a bundle that fits is never divided.

    Returns:
        Row indices by micro-batch, tokens that go through the model, and those of them in prefixes that run again
        because a bundle was divided.

    Raises:
        VisdError: a single row is longer than the budget; `describe(row)` names it.
    """
    bundles = bundles_of(rows)
    parts = [part for bundle in bundles for part in divided(bundle, rows, budget, describe)]
    costs = [part.tokens(rows) for part in parts]
    batches: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(parts)), key=costs.__getitem__, reverse=True):
        into = next((b for b, left in enumerate(room) if left >= costs[i]), None)
        if into is None:
            into = len(batches)
            batches.append([])
            room.append(budget)
        batches[into] += parts[i].rows
        room[into] -= costs[i]
    return batches, sum(costs), sum(costs) - sum(bundle.tokens(rows) for bundle in bundles)


def divided(bundle: Bundle, rows: Sequence[Row], budget: int, describe: Callable[[int], str]) -> list[Bundle]:
    """A bundle in parts that fit, each with the prefix again."""
    parts: list[list[int]] = [[]]
    used = bundle.prefix
    for i in bundle.rows:
        length = len(rows[i])
        if length > budget:
            raise too_long(describe(i), length, budget)
        if used + length - bundle.prefix > budget:
            parts.append([])
            used = bundle.prefix
        parts[-1].append(i)
        used += length - bundle.prefix
    return [Bundle(tuple(part), bundle.prefix) for part in parts if part]


def too_long(name: str, length: int, budget: int) -> VisdError:
    """A row that fits into no micro-batch."""
    return VisdError(
        f"{name} takes {length} tokens, more than train.micro_batch_tokens = {budget}: "
        "raise it, or lower prompt.max_tokens, prompt.video or rollout.max_new_tokens."
    )


def build_shared_inputs(rows: Sequence[Row]) -> ForwardInputs:
    """The rows' bundles one after the other in one sequence of L tokens; scores come out as of `build_inputs`."""
    bundles = bundles_of(rows)
    ids: list[Tensor] = []
    types: list[Tensor] = []
    positions: list[Tensor] = []
    width = max(1, max(len(row.response_ids) for row in rows))
    index = torch.zeros((len(rows), width), dtype=torch.long)
    response_ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    start = 0
    for bundle in bundles:
        shared = rows[bundle.rows[0]].prompt
        ids.append(shared.input_ids[: bundle.prefix])
        types.append(shared.mm_token_type_ids[: bundle.prefix])
        positions.append(shared.position_ids[:, : bundle.prefix])
        end = start + bundle.prefix
        for i in bundle.rows:
            row, count = rows[i], len(rows[i].response_ids)
            response = torch.as_tensor(row.response_ids, dtype=torch.long)
            tail = row.prompt.input_ids[bundle.prefix :]
            ids += [tail, response]
            types += [torch.zeros(len(tail), dtype=torch.int), response_types(row)]
            after = response_positions(row.prompt, count, media_of(row))
            positions += [row.prompt.position_ids[:, bundle.prefix :], after]
            predictors = torch.arange(len(tail) - 1, len(tail) + count - 1)
            # Where the prompt is all prefix, its last token predicts every row's first one.
            index[i, :count] = torch.where(predictors < 0, start + bundle.prefix - 1, end + predictors)
            response_ids[i, :count] = response
            mask[i, :count] = scored_tokens(row)
            end += len(tail) + count
        start = end
    firsts = [rows[bundle.rows[0]] for bundle in bundles]
    found = [[rows[b.rows[0]].features, *(shown_features(rows[i]) for i in b.rows)] for b in bundles]
    return ForwardInputs(
        input_ids=torch.cat(ids)[None],
        attention_mask=torch.ones((1, start), dtype=torch.bool),
        mm_token_type_ids=torch.cat(types).to(torch.int)[None],
        position_ids=torch.cat(positions, dim=1)[:, None],
        response_index=index,
        response_ids=response_ids,
        response_mask=mask,
        features=concatenate_features([part for parts in found for part in parts]),
        media=tuple(row.prompt.vision for row in firsts if row.features is None and not row.prompt.vision.empty),
        layout=layout_of([(b.prefix, [len(rows[i]) - b.prefix for i in b.rows]) for b in bundles]),
    )
