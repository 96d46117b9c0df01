"""What an engine must have in common with the trainer: the ids of a prompt, and the ids that are never sampled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from visd.types import Prompt, VisdError

SHOWN = 6
"""Tokens shown on each side of the first difference."""


def check_prompt_ids(prompt: Prompt, theirs: Sequence[int], tokenizer: Any) -> None:
    """Refuse an engine that saw another prompt.

    Raises:
        VisdError: shows both prompts around the first difference.
    """
    ours = prompt.input_ids.tolist()
    if list(theirs) == ours:
        return
    pairs = zip(ours, theirs, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    start, end = max(0, first - SHOWN), first + SHOWN
    ours_shown, theirs_shown = (
        " ".join(tokenizer.convert_ids_to_tokens(list(ids[start:end]))) or "its end" for ids in (ours, theirs)
    )
    raise VisdError(
        f"sample {prompt.sample_id!r}: the engine's prompt has {len(theirs)} tokens, the trainer's {len(ours)}, and they "
        f"differ from token {first} on. From token {start}, trainer: {ours_shown} | engine: {theirs_shown}. The two process "
        "media differently; take rollout=transformers, or an engine of another version."
    )


def check_not_banned(sample_id: str, ids: Sequence[int], banned: Collection[int]) -> None:
    """Refuse an answer that holds an id which stands for media or opens a turn.

    Raises:
        VisdError: names the id.
    """
    found = sorted(set(ids) & set(banned))
    if found:
        raise VisdError(f"sample {sample_id!r}: the engine sampled the banned id {found[0]}; its mask does not work.")
