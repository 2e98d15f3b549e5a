"""Compare a kernel of dense attention with one softmax over logits that are written out."""

import torch

from unimem.attention.kernels.base import materialised

KINDS = [
    "all", "band", "bias", "bias of rows", "bias of heads", "bias of a window",
    "band over too few keys", "band over everything",
]  # fmt: skip


def example(kind, B=2, H=4, G=2, T=37, N=75, D=32):
    """Return query, key, value, bias and band.

    With a bias every other query sees no key, unless the bias is a window.
    """
    generator = torch.Generator().manual_seed(0)
    N = T - 6 if kind == "band over too few keys" else N
    query, key, value = (
        torch.randn(B, heads, length, D, generator=generator)
        for heads, length in ((H, T), (G, N), (G, N))
    )
    bias, band = None, 5 if kind.startswith("band") else None
    band = N if kind == "band over everything" else band
    if kind.startswith("bias"):
        shape = (B if "rows" in kind else 1, H if "heads" in kind else 1, T, N)
        counts = torch.randint(0, 3, shape, generator=generator)
        counts[:, :, ::2] = 0
        if "window" in kind:
            counts = within(7, T, N).long()[None, None]
            counts[:, :, ::3, :2] = 1
        bias = counts.float().log()
    return query * D**-0.5, key, value, bias, band


def check(kernel, kind, dtype, device, tolerance):
    """Compare a kernel with one softmax over its keys and others, computed in double precision.

    Gradients of half precision pass through weights of half precision: twice the tolerance.
    """
    query, key, value, bias, band = example(kind)
    _, other_key, other_value, *_ = example("all", N=9)
    hidden = torch.zeros(1, 1, query.shape[2], key.shape[2]) if bias is None else bias
    if band is not None:
        hidden = torch.zeros_like(hidden).masked_fill(~within(band, *hidden.shape[2:]), -torch.inf)
        bias, band = (None, band) if kernel.bands else (hidden, None)
    tensors = [t.to(device, dtype) for t in (query, key, value, other_key, other_value)]
    wide = [t.double().requires_grad_() for t in tensors]
    bias = None if bias is None else bias.to(device, dtype)
    hidden = hidden.to(device, dtype).double()

    found_out, found_lse = kernel.forward(*tensors[:3], bias, band)
    with torch.no_grad():
        out, lse = materialised(*wide[:3], hidden)
    empty = lse == -torch.inf
    assert torch.equal(found_lse == -torch.inf, empty)
    assert not found_out[empty].any()
    close(found_out, out, tolerance)
    close(found_lse.masked_fill(empty, 0), lse.masked_fill(empty, 0), tolerance)

    both = torch.cat([hidden, hidden.new_zeros(*hidden.shape[:3], other_key.shape[2])], -1)
    keys, values = torch.cat([wide[1], wide[3]], 2), torch.cat([wide[2], wide[4]], 2)
    out, lse = materialised(wide[0], keys, values, both)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    truths = torch.autograd.grad(out, wide, grad.double())
    joint = out.detach().to(dtype).contiguous(), lse.detach().float()
    dquery, *rest = kernel.backward(grad, *tensors[:3], bias, band, *joint)
    other = tensors[0], *tensors[3:], None, None
    dquery_too, *others = kernel.backward(grad, *other, *joint)
    for found, truth in zip((dquery + dquery_too, *rest, *others), truths, strict=True):
        assert found.dtype == dtype
        close(found, truth, 2 * tolerance)


def close(found, truth, tolerance):
    """Assert that the largest difference is small beside the largest number."""
    assert found.shape == truth.shape
    assert (found.double() - truth).abs().max() <= tolerance * truth.abs().max()


def within(band, T, N):
    """Return a mask [T, N] of the keys that a band shows."""
    ahead = torch.arange(N) - torch.arange(N - T, N)[:, None]
    return (ahead <= 0) & (ahead >= -band)
