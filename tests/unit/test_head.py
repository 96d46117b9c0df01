"""The output head's own backward against autograd through whole logits, and how much it holds at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visd.policy import head as head_module
from visd.policy.head import ScoringHead, make_scoring, score_names, score_positions
from visd.types import ScoreNeeds, VisdError

N, H, V, TEMPERATURE = 11, 6, 23, 0.7
BANNED = torch.zeros(V, dtype=torch.bool).index_fill_(0, torch.tensor([0, 5, 22]), True)
IDS = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 21, 1, 1])
SUPPORT = torch.stack([IDS, (IDS % 4) + 10, (IDS % 3) + 15], dim=-1)
NEEDS = {
    "sampled": (ScoreNeeds(), None),
    "entropy and top-k": (ScoreNeeds(entropy=True, top_k=4), None),
    "given ids": (ScoreNeeds(entropy=True, overlap_k=3), SUPPORT),
    "both": (ScoreNeeds(top_k=4, support="both"), SUPPORT),
    "all": (ScoreNeeds(entropy=True, full=True, top_k=2, overlap_k=2, log_z=True), None),
}


def made(dtype: torch.dtype, bias: bool = False) -> tuple[ScoringHead, Tensor]:
    torch.manual_seed(0)
    head = make_scoring(nn.Linear(H, V, bias=bias, dtype=dtype))
    return head, torch.randn(N, H, dtype=dtype, requires_grad=True)


def scored(head: ScoringHead, hidden: Tensor, needs: ScoreNeeds, support: Tensor | None) -> dict[str, Tensor]:
    return score_positions(
        head, hidden, IDS, temperature=TEMPERATURE, banned_V=BANNED, needs=needs, support_ids_NK=support
    )


def plainly(head: ScoringHead, hidden: Tensor, needs: ScoreNeeds, support: Tensor | None) -> dict[str, Tensor]:
    """The same by autograd, every logit at once."""
    logits = (head(hidden) / TEMPERATURE).masked_fill(BANNED, -torch.inf)
    logp = logits.log_softmax(-1)
    own = logp.topk(max(needs.top_k, 1)).indices
    if needs.top_k and (support is None or needs.support == "both"):
        support = own if support is None else torch.cat([support, own], -1)
    found = {
        "logp": logp.gather(-1, IDS[:, None])[:, 0],
        "entropy": torch.special.entr(logp.detach().exp()).sum(-1),
        "full_logp": logp,
        "kth_logp": logp.detach().topk(max(needs.overlap_k, 1)).values[:, -1],
        "log_z": logits.logsumexp(-1),
    }
    if support is not None:
        found |= {"support_ids": support, "support_logp": logp.gather(-1, support)}
    return {name: found[name] for name in score_names(needs, support)}


def gradients(found: dict[str, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Of a sum that weighs every number differently."""
    total = torch.zeros((), dtype=leaves[0].dtype)
    for value in found.values():
        if value.requires_grad:
            finite = value.masked_fill(value == -torch.inf, 0.0)
            total = total + (finite * torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view_as(value)).sum()
    return list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("which", NEEDS)
def test_scores_and_gradients_are_those_of_whole_logits(
    which: str, dtype: torch.dtype, close: float, bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", chunk * V)
    head, hidden = made(dtype, bias)
    needs, support = NEEDS[which]
    expected, found = plainly(head, hidden, needs, support), scored(head, hidden, needs, support)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].requires_grad == value.requires_grad, name
        torch.testing.assert_close(found[name], value, atol=10 * close, rtol=0)
    leaves = [hidden, *head.parameters()]
    for one, other in zip(gradients(expected, leaves), gradients(found, leaves), strict=True):
        assert float((other - one).norm()) <= close * float(one.norm())


@pytest.mark.parametrize("chunk", [3, 100])
def test_gradients_are_those_of_finite_differences(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", chunk * V)
    head, hidden = made(torch.float64, bias=True)

    def of(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        given = {"weight": weight, "bias": bias}
        found: tuple[Tensor, ...] = torch.func.functional_call(
            head, given, (hidden, head_module.Wanted(IDS, SUPPORT, BANNED, TEMPERATURE, ScoreNeeds(log_z=True)))
        )
        return found[0], found[2], found[3]

    assert torch.autograd.gradcheck(of, (hidden, *(p.detach().requires_grad_() for p in head.parameters())))


class Watch(TorchDispatchMode):
    """The largest tensor whose last or first dimension is the vocabulary, the weights' own gradient apart."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and value.ndim == 2 and V in value.shape and H not in value.shape:
                self.most = max(self.most, value.numel())
        return out


@pytest.mark.parametrize("run", [scored, plainly])
def test_no_more_than_a_chunk_of_logits_exists(
    run: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 3 * V)
    head, hidden = made(torch.float32)
    with Watch() as watch:
        found = run(head, hidden, ScoreNeeds(entropy=True, top_k=4), None)
        (found["logp"].sum() + found["support_logp"].sum()).backward()
    assert watch.most == (3 if run is scored else N) * V


def test_what_is_frozen_gets_no_gradient_and_no_work() -> None:
    """As with adapters: the head is frozen, and hidden states go on."""
    head, hidden = made(torch.float32)
    head.requires_grad_(False)
    with Watch() as watch:
        scored(head, hidden, ScoreNeeds(), None)["logp"].sum().backward()
    assert head.weight.grad is None and hidden.grad is not None and float(hidden.grad.abs().sum()) > 0
    assert watch.most == N * V


def test_halves_are_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 256 chunks of one position, bfloat16 sums would lose most of what is added last."""
    torch.manual_seed(0)
    head = make_scoring(nn.Linear(H, V, bias=False))
    hidden, ids = torch.randn(256, H) + 1, torch.full((256,), 3)
    found = []
    for dtype, elements in ((torch.float32, 256 * V), (torch.bfloat16, V)):
        monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", elements)
        head = head.to(dtype)
        head.weight.grad = None
        scores = score_positions(
            head, hidden.to(dtype), ids, temperature=1.0, banned_V=torch.zeros(V).bool(), needs=ScoreNeeds()
        )
        assert scores["logp"].dtype == torch.float32
        scores["logp"].sum().backward()
        assert head.weight.grad is not None and head.weight.grad.dtype == dtype
        found.append(head.weight.grad.float())
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 5e-3


def test_under_autocast_products_are_halves_and_gradients_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 4 * V)
    head, hidden = made(torch.float32)
    exact = gradients(scored(head, hidden, ScoreNeeds(), None), [hidden, head.weight])
    with torch.autocast("cpu", torch.bfloat16):
        found = scored(head, hidden, ScoreNeeds(), None)
        logits = head(hidden)
    assert logits.dtype == torch.bfloat16
    expected = (logits.float() / TEMPERATURE).masked_fill(BANNED, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(found["logp"], expected.gather(-1, IDS[:, None])[:, 0], atol=1e-6, rtol=0)
    for one, other in zip(exact, gradients(found, [hidden, head.weight]), strict=True):
        assert other.dtype == torch.float32 and float((other - one).norm()) <= 2e-2 * float(one.norm())


def test_a_table_that_is_embedding_and_head_gets_both_gradients() -> None:
    head, _ = made(torch.float64)
    table = nn.Embedding(V, H, dtype=torch.float64)
    table.weight = head.weight
    found = [gradients(run(head, table(IDS), ScoreNeeds(), None), [head.weight])[0] for run in (plainly, scored)]
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)


def test_nothing_to_score_and_another_head() -> None:
    head, hidden = made(torch.float32)
    nothing = score_positions(
        head, hidden[:0], IDS[:0], temperature=1.0, banned_V=BANNED, needs=ScoreNeeds(entropy=True)
    )
    nothing["logp"].sum().backward()
    assert nothing["logp"].shape == (0,) and head.weight.grad is not None and not head.weight.grad.any()
    with pytest.raises(VisdError, match=r"output head is a Sequential"):
        make_scoring(nn.Sequential())
