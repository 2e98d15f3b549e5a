"""Kernels over stand-ins for what needs a GPU, with its signatures, layouts and quirks.

They prove which tensor goes where, in which layout; not that the operators do so.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers.kernel_truth import KINDS, check, within
from torch.nn.functional import pad

from unimem.attention.kernels.base import materialised
from unimem.attention.kernels.efficient import Efficient
from unimem.attention.kernels.flash import Flash
from unimem.attention.kernels.flash_builds import PACKAGES, PYTORCH


def attention(q, k, v, bias=None, left=None, right=None, nothing=-torch.inf):
    """Attend over [B, T, H, D], with a window as FlashAttention takes it; lse `nothing` of none."""
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert (left in (None, -1), right) in ((True, None), (True, -1), (False, 0))
    band = None if left in (None, -1) else left
    wide = (t.double().transpose(1, 2) for t in (q, k, v))
    out, lse = materialised(*wide, None if bias is None else bias.double(), band)
    return out.transpose(1, 2).to(q.dtype), lse.float().masked_fill(lse == -torch.inf, nothing)


def gradients(grad, q, k, v, out, lse, bias=None, left=None, right=None):
    """Go back through `attention` under the joint output and log-sum-exp."""
    assert lse.is_contiguous()
    G, (T, N) = k.shape[2], (q.shape[1], k.shape[1])
    grad, q, k, v, out = (t.double().transpose(1, 2) for t in (grad, q, k, v, out))
    keys, values = (t.repeat_interleave(q.shape[1] // G, 1) for t in (k, v))
    logits = q @ keys.mT if bias is None else q @ keys.mT + bias.double()
    if left not in (None, -1):
        logits = logits.masked_fill(~within(left, T, N), -torch.inf)
    weights = (logits - lse.double()[..., None]).exp()
    slopes = weights * (grad @ values.mT - (grad * out).sum(-1, keepdim=True))
    dk, dv = (t.unflatten(1, (G, -1)).sum(2) for t in (slopes.mT @ q, weights.mT @ grad))
    return [t.transpose(1, 2).to(lse.dtype) for t in (slopes @ keys, dk, dv)]


def sides(**options):
    return {side: options.get(f"window_size_{side}") for side in ("left", "right")}


def write(buffers, grads):
    for buffer, grad in zip(buffers, grads, strict=True):
        buffer.copy_(grad)


def fwd_4(q, k, v, qv=None, *, softmax_scale, return_lse, **window):
    assert (qv, softmax_scale, return_lse) == (None, 1.0, True)
    return *attention(q, k, v, **sides(**window)), None, None, None


def bwd_4(q, k, v, out, dout, lse, softmax_scale, *, deterministic, **window):
    assert softmax_scale == 1.0
    return [t.to(q.dtype) for t in gradients(dout, q, k, v, out, lse, **sides(**window))]


def fwd_3(q, k, v, k_new=None, *, softmax_scale, num_splits, **window):
    assert (k_new, softmax_scale, num_splits) == (None, 1.0, 1)
    return *attention(q, k, v, **sides(**window)), None, None


def bwd_3(dout, q, k, v, out, softmax_lse, dq, dk, dv, *, softmax_scale, deterministic, **window):
    assert softmax_scale == 1.0
    write((dq, dk, dv), gradients(dout, q, k, v, out, softmax_lse, **sides(**window)))


def fwd_2(
    q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
    alibi_slopes, return_softmax,
):  # fmt: skip
    assert (dropout_p, softmax_scale, causal, softcap) == (0.0, 1.0, False, 0.0)
    window = {"left": window_size_left, "right": window_size_right}
    return *attention(q, k, v, **window, nothing=torch.inf), None, None


def bwd_2(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
    window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
):  # fmt: skip
    assert (dropout_p, softmax_scale, causal, softcap) == (0.0, 1.0, False, 0.0)
    window = {"left": window_size_left, "right": window_size_right}
    write((dq, dk, dv), gradients(dout, q, k, v, out, softmax_lse, **window))


def aten_fwd(q, k, v, *, max_q, max_k, scale, **rest):
    assert (max_q, max_k, scale) == (q.shape[1], k.shape[1], 1.0)
    return *attention(q, k, v, **sides(**rest), nothing=torch.inf), None, None, None


def aten_bwd(dout, q, k, v, out, lse, *, scale, rng_state, unused, **rest):
    return bwd_4(q, k, v, out, dout, lse, scale, deterministic=False, **rest)


def efficient_fwd(query, key, value, attn_bias, compute_log_sumexp, scale):
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    assert (q.shape[2], compute_log_sumexp, scale) == (k.shape[2], True, 1.0)
    out, lse = attention(q, k, v, read(attn_bias, query), nothing=0)
    return out.transpose(1, 2), pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf), None, None


def efficient_bwd(grad, query, key, value, attn_bias, out, lse, *, scale, **rest):
    B, H, T, D = query.shape
    assert lse.shape[-1] % 32 == 0 and lse[..., T:].isinf().all() and scale == 1.0
    merge_parts = out.as_strided((B, T, H, D), (out.stride(0), H * D, out.stride(1), 1))
    qkv = (t.transpose(1, 2) for t in (grad, query, key, value))
    found = gradients(*qkv, merge_parts, lse[..., :T].contiguous(), read(attn_bias, query))
    return *(t.transpose(1, 2).to(query.dtype) for t in found), None


def read(bias, query):
    assert bias is None or (bias.dtype, bias.shape[:3]) == (query.dtype, query.shape[:3])
    assert bias is None or all(stride % 8 == 0 for stride in bias.stride()[:3])
    return bias


@pytest.fixture
def _stand_ins(monkeypatch):
    for name in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    fourth = SimpleNamespace(_flash_attn_fwd=fwd_4, _flash_attn_bwd=bwd_4)
    second = SimpleNamespace(_flash_attn_forward=fwd_2, _flash_attn_backward=bwd_2)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", fourth)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", second)
    third = SimpleNamespace(fwd=fwd_3, bwd=bwd_3)
    monkeypatch.setattr(torch.ops, "flash_attn_3", third, raising=False)
    flash, efficient = "_flash_attention", "_scaled_dot_product_efficient_attention"
    monkeypatch.setattr(torch.ops.aten, f"{flash}_forward", aten_fwd)
    monkeypatch.setattr(torch.ops.aten, f"{flash}_backward", aten_bwd)
    monkeypatch.setattr(torch.ops.aten, efficient, efficient_fwd)
    monkeypatch.setattr(torch.ops.aten, f"{efficient}_backward", efficient_bwd)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [*PACKAGES, PYTORCH], ids=lambda build: build.name)
def test_flash(build, kind):
    check(Flash(build), kind, torch.bfloat16, "cpu", 5e-3)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("kind", KINDS)
def test_efficient(kind):
    check(Efficient(), kind, torch.float32, "cpu", 2e-6)
