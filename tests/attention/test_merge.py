"""One softmax over parts equals the one over all keys with its logits written out."""

import pytest
import torch

from unimem.attention import merge as module
from unimem.attention.kernels.base import materialised
from unimem.attention.kernels.cpu import CpuFlash
from unimem.attention.merge import Dense, Sparse, merge_parts

B, H, D = 2, 4, 16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 5e-3}
GRADIENT = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
CASES = {
    "search and window": {"dense": (9, 21), "picks": 5},
    "search alone": {"dense": (), "picks": 5},
    "three masks": {"dense": (4, 7, 21), "picks": 0},
    "one query": {"dense": (12,), "picks": 3, "T": 1},
    "more picks than slots": {"dense": (6,), "picks": 7, "M": 7},
}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(dense, picks, G, T=13, M=40):
    """Tensors in double precision: queries, a bias for each dense part, and what is picked."""
    query = random(B, H, T, D, seed=0) / 2
    parts, mask = [], torch.Generator().manual_seed(1)
    for i, N in enumerate(dense):
        bias = torch.zeros(B, [1, H][i % 2], T, N, dtype=torch.float64)
        hidden = torch.rand(bias.shape, generator=mask) > 0.6
        hidden[:, :, 0] = i == 0  # the first query sees nothing of the first part
        parts.append(
            (random(B, G, N, D, seed=2 + i), random(B, G, N, D, seed=20 + i), bias, hidden)
        )
    keys, values = random(B, G, 2 * M, D, seed=40)[:, :, 5 : 5 + M], random(B, G, M, D, seed=41)
    index = torch.stack([torch.randperm(M, generator=mask)[:picks] for _ in range(B * H * T)]).view(
        B, H, T, picks
    )
    none = torch.rand(index.shape, generator=mask) > 0.8
    return query, parts, keys, values, index, none


def wide(keys, heads=H):
    return keys.repeat_interleave(heads // keys.shape[1], 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("G", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_parts_are_one_softmax(case, G, dtype, monkeypatch):
    monkeypatch.setattr(module, "GATHERED", 1 << 9)  # in several chunks, where it gathers
    query, parts, keys, values, index, none = example(G=G, **CASES[case])
    leaves = [query, *(t for part in parts for t in part[:2]), keys, values]
    leaves = [t.to(dtype).requires_grad_() for t in leaves]
    query, *own, keys, values = leaves
    dense = [
        Dense(query, own[2 * i], own[2 * i + 1], bias.masked_fill(hidden, -torch.inf).to(dtype))
        for i, (_, _, bias, hidden) in enumerate(parts)
    ]
    sparse = None
    if index.shape[-1]:
        with torch.no_grad():
            logits = (query.double() @ wide(keys).double().mT).gather(-1, index)
        logits = logits.masked_fill(none, -torch.inf)
        logits = logits.to(torch.promote_types(dtype, torch.float32))
        sparse = Sparse(query, keys, values, index, logits)
    out = merge_parts(CpuFlash(), dense, sparse)

    true = [t.detach().double().requires_grad_() for t in leaves]
    all_keys, all_values = [true[-2], *true[1:-2:2]], [true[-1], *true[2:-2:2]]
    T, M = index.shape[2], true[-2].shape[2]
    attn_mask = torch.zeros(B, H, T, M, dtype=torch.bool)
    attn_mask = attn_mask.scatter(-1, index, ~none) if index.shape[-1] else attn_mask
    masks = [attn_mask, *(~hidden.expand(B, H, -1, -1) for *_, hidden in parts)]
    bias = torch.zeros(B, H, T, sum(m.shape[-1] for m in masks), dtype=torch.float64)
    bias = bias.masked_fill(~torch.cat(masks, -1), -torch.inf)
    some = (bias > -torch.inf).any(-1, keepdim=True)
    truth, _ = materialised(
        true[0], torch.cat(all_keys, 2), torch.cat(all_values, 2), bias.where(some, 0)
    )
    truth = truth * some  # a query that sees nothing gets 0
    assert (out - truth).abs().max() <= TOLERANCE[dtype] * truth.abs().max()
    grad = random(*out.shape, seed=9)
    out.backward(grad.to(dtype))
    truth.backward(grad.to(dtype).double())
    for found, expected in zip(leaves, true, strict=True):
        if found.grad is None:
            assert sparse is None
            continue
        assert found.grad.dtype == dtype
        error = (found.grad - expected.grad).abs().max()
        assert error <= GRADIENT[dtype] * expected.grad.abs().max()


def test_constants_get_no_gradient():
    query, _, keys, values, index, _ = example((), 5, 2)
    query.requires_grad_()
    logits = (query.detach() @ wide(keys).mT).gather(-1, index)
    merge_parts(CpuFlash(), [], Sparse(query, keys, values, index, logits)).sum().backward()
    assert query.grad is not None
    assert keys.grad is None
    assert values.grad is None
