"""The cache with room holds what transformers' own growing cache holds."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from tests.models import tiny_hf
from visd.rollout.cache import RoomyLayer, for_answers


def filled(seed: int = 0) -> DynamicCache:
    numbers = torch.Generator().manual_seed(seed)
    cache = DynamicCache()
    for index in range(2):
        cache.update(*(torch.randn(3, 2, 5, 4, generator=numbers) for _ in range(2)), index)
    return cache


def test_it_grows_as_the_plain_cache_does_without_moving() -> None:
    roomy, plain = filled(), filled()
    for_answers(roomy, repeats=2, room=3)
    plain.batch_repeat_interleave(2)
    assert all(isinstance(layer, RoomyLayer) for layer in roomy.layers)
    places = [layer.keys.data_ptr() for layer in roomy.layers]  # type: ignore[union-attr]
    for _ in range(3):
        for index in range(2):
            new = torch.randn(6, 2, 1, 4), torch.randn(6, 2, 1, 4)
            for mine, theirs in zip(roomy.update(*new, index), plain.update(*new, index), strict=True):
                assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()
    assert places == [layer.keys.data_ptr() for layer in roomy.layers]  # type: ignore[union-attr]


def test_rows_that_stay_keep_what_they_hold_and_their_room() -> None:
    roomy, plain = filled(), filled()
    for cache in (roomy, plain):
        if cache is roomy:
            for_answers(cache, repeats=2, room=2)
        else:
            cache.batch_repeat_interleave(2)
    staying = torch.tensor([0, 3, 5])
    numbers = torch.Generator().manual_seed(1)
    for rows, select in ((6, True), (3, False)):
        for index in range(2):
            new = torch.randn(rows, 2, 1, 4, generator=numbers), torch.randn(rows, 2, 1, 4, generator=numbers)
            for mine, theirs in zip(roomy.update(*new, index), plain.update(*new, index), strict=True):
                assert torch.equal(mine, theirs)
        if select:
            roomy.batch_select_indices(staying)
            plain.batch_select_indices(staying)


@torch.no_grad()
def test_a_model_reads_it_as_it_reads_the_plain_one() -> None:
    model = tiny_hf("text")
    ids = torch.randint(5, 90, (3, 6))
    outputs = []
    for roomy in (True, False):
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache)
        if roomy:
            for_answers(cache, repeats=2, room=2)
        else:
            cache.batch_repeat_interleave(2)
        following = ids[:, :2].repeat_interleave(2, dim=0)
        outputs.append([model(following[:, t : t + 1], past_key_values=cache).logits for t in range(2)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*outputs, strict=True))
