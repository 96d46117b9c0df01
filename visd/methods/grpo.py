"""GRPO: the group-relative advantage on every token (DeepSeekMath, arXiv 2402.03300).

    A_t = A_i

No teacher, no judge. The variants (division by the deviation, clip bounds, KL, token or sequence mean) are settings of
`objective`. Deviation from the paper: the default loss is the mean over all tokens of the step (DAPO, arXiv
2503.14476) and KL is off; `objective.aggregation=sequence` and `objective.kl_weight=0.04` give the original form.
"""

from __future__ import annotations

from dataclasses import dataclass

from visd.methods.base import Method


@dataclass
class GRPO(Method):
    """The defaults of `Method` are GRPO."""
