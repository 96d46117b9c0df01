"""The published VISD code's recipe (Koreyoshi01/VISD, commit 91bb9922; arXiv 2605.06094).

`VISD` with g_t = 1: K = 16, gamma = 0, eps = 0.2, lam from 0.5 linearly to 0 over 600 steps, text feedback in the
teacher's prompt and no judge score anywhere. Its config also sets the published objective (token-level ratio, mean
over each sequence, then over rollouts, sample deviation + 1e-4, beta 0, clip 0.2 / 0.2) and the teacher (EMA, rate
0.01). Deviation: the average is kept in fp32; `teacher.ema_dtype=bfloat16` gives the released arithmetic, in which
the teacher hardly moves. The release turns judge, teacher and EMA off after step 600, and so does `lam_steps`.
`prompt=released` also shows the student the key frames of some questions while it trains, as the release does.
"""

from __future__ import annotations

from dataclasses import dataclass

from visd.methods.visd import VISD


@dataclass
class VISDRelease(VISD):
    """The published settings."""

    lam: float = 0.5  # mixing weight of the evidence at step 1
    eps: float = 0.2  # bound of a token's weight around 1
    dimension_strength: float = 0.0  # the release has no judge scores
