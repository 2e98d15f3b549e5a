"""The search finds what sorting all logits finds."""

import pytest
import torch

from unimem.attention import search as module
from unimem.attention.search import search

CASES = {  # B, H, G, T, M, k, W, heads of open, heads of taken
    "masks for all heads": (2, 4, 2, 16, 70, 5, 20, 1, 1),
    "masks of each head": (1, 4, 4, 30, 300, 12, 100, 4, 4),
    "ragged": (2, 4, 1, 70, 501, 8, 0, 1, 1),
    "fewer candidates than wanted": (1, 2, 1, 3, 9, 20, 9, 1, 2),
    "one query": (2, 4, 2, 1, 333, 4, 50, 1, 1),
}


def example(B, H, G, T, M, k, W, open_heads, taken_heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(B, H, T, 16, generator=generator)
    keys = torch.randn(B, G, M + 9, 16, generator=generator)[:, :, 9:]
    opened = torch.rand(B, open_heads, M, generator=generator) > 0.3
    taken = torch.rand(B, taken_heads, T, W, generator=generator) > 0.5 if W else None
    return query, keys, k, opened, taken


def check(query, keys, k, opened, taken):
    index, logits = search(query, keys, k, opened, taken)
    H, M = query.shape[1], keys.shape[2]

    def per_head(x):
        return x.repeat_interleave(H // x.shape[1], 1)

    scores = query @ per_head(keys).mT
    free = per_head(opened)[:, :, None].expand(scores.shape).clone()
    if taken is not None:
        free[..., M - taken.shape[-1] :] &= ~per_head(taken)
    best = scores.masked_fill(~free, -torch.inf).topk(min(k, M), -1).values
    found = logits > -torch.inf
    assert torch.equal(found.sum(-1), (best > -torch.inf).sum(-1))
    torch.testing.assert_close(logits.sort(-1, True).values, best, rtol=1e-5, atol=1e-5)
    assert not index[~found].any()
    assert free.gather(-1, index)[found].all()
    near = scores.gather(-1, index)
    torch.testing.assert_close(near[found], logits[found].to(near), rtol=1e-5, atol=1e-5)
    once = torch.zeros_like(scores).scatter_add(-1, index, found.to(scores))
    assert once.max() <= 1


@pytest.mark.parametrize("kept", [None, 0, 99, 999], ids=lambda kept: f"kept {kept}")
@pytest.mark.parametrize("case", CASES)
def test_search_is_topk(case, kept, monkeypatch):
    if kept is not None:
        small = {"ROWS": 6, "TILE": 16, "PANEL": 130, "FAN": 2, "TOP": 4, "KEPT": kept}
        for name, value in small.items():
            monkeypatch.setattr(module, name, value)
    check(*example(*CASES[case]))


@pytest.mark.parametrize("M", [3000, 20000])
def test_many_keys(M):
    check(*example(1, 2, 2, 64, M, 4, 512, 1, 1))


@pytest.mark.slow
def test_more_keys_than_a_panel():
    check(*example(1, 1, 1, 7, 70000, 6, 300, 1, 1))


def test_nothing_to_find():
    query, keys, k, opened, taken = example(*CASES["ragged"])
    index, logits = search(query, keys, k, torch.zeros_like(opened), taken)
    assert (logits == -torch.inf).all()
    assert not index.any()


@pytest.mark.parametrize("M", [7, 301, 3001, 5001])
def test_one_slot_is_left(M):
    query, keys, _, opened, _ = example(1, 2, 1, 3, M, 4, 0, 1, 1)
    opened[..., : M // 2] = False
    opened[..., M // 2] = True
    taken = torch.ones(1, 1, 3, M - M // 2, dtype=torch.bool)
    taken[..., 0] = False
    check(query, keys, 4, opened, taken)


def test_equal_keys_are_found_once_each():
    query, keys, k, opened, _ = example(*CASES["ragged"])
    check(query, torch.ones_like(keys), k, opened, None)


def test_half_precision_is_searched_in_full():
    query, keys, k, opened, taken = example(*CASES["ragged"])
    query, keys = query.bfloat16(), keys.bfloat16()
    _, logits = search(query, keys, k, opened, taken)
    _, wide = search(query.float(), keys.float(), k, opened, taken)
    assert logits.dtype == torch.float32
    assert torch.equal(logits.sort(-1).values, wide.sort(-1).values)


def test_the_operator_says_what_it_gives():
    torch.library.opcheck(search, example(*CASES["masks for all heads"]))
