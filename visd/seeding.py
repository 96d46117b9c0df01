"""Seeds derived from what they are for, so that no random-number state has to be saved.

The same (run, step, sample, generation) gives the same sampled tokens on any number of ranks and after any restart.
The idea is nanochat's (karpathy/nanochat, `scripts/chat_rl.py`).
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, its type and its place."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A private generator for the given purpose."""
    return np.random.Generator(np.random.Philox(derive_seed(*parts)))
