"""The builds of FlashAttention, and how their functions around a log-sum-exp are called.

Shapes: B rows, H query heads, G key-value heads, T queries, N keys, D head size. Queries, outputs
and their gradients are [B, T, H, D], keys and values [B, N, G, D], log-sum-exps [B, H, T]. A window
is the pair of keyword arguments `window_size_left` and `window_size_right`, or none.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Build(NamedTuple):
    """One build of FlashAttention."""

    name: str
    module: str
    """What to import."""
    majors: range
    """The major compute capabilities it runs on."""
    forward: Callable[..., Sequence[Tensor]]
    """(module, q, k, v, **window) -> output, log-sum-exp."""
    backward: Callable[..., Sequence[Tensor]]
    """(module, grad, q, k, v, output, log-sum-exp, **window) -> gradients of q, k and v."""


def available() -> list[Build]:
    """Return the builds that are installed and run on this GPU, the newest first.

    PyTorch's own is always the last.
    """
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    found: list[Build] = []
    for build in PACKAGES:
        if major in build.majors:
            try:
                import_module(build.module)
            except ModuleNotFoundError:
                continue
            found.append(build)
    return [*found, PYTORCH]


def _settings() -> dict[str, Any]:
    return {"softmax_scale": 1.0, "deterministic": torch.are_deterministic_algorithms_enabled()}


def _forward_4(module: Any, *qkv: Tensor, **window: int) -> Sequence[Tensor]:
    return module._flash_attn_fwd(*qkv, softmax_scale=1.0, return_lse=True, **window)[:2]


def _backward_4(module: Any, grad: Tensor, *saved: Tensor, **window: int) -> Sequence[Tensor]:
    q, k, v, out, lse = saved
    return module._flash_attn_bwd(q, k, v, out, grad, lse, **_settings(), **window)


def _forward_3(module: Any, *qkv: Tensor, **window: int) -> Sequence[Tensor]:
    # the module's functions changed their arguments, the operators it registers did not
    return torch.ops.flash_attn_3.fwd(*qkv, softmax_scale=1.0, num_splits=1, **window)[:2]


def _backward_3(module: Any, grad: Tensor, *saved: Tensor, **window: int) -> Sequence[Tensor]:
    grads = [torch.empty_like(t) for t in saved[:3]]
    torch.ops.flash_attn_3.bwd(grad, *saved, *grads, **_settings(), **window)
    return grads


def _options_2(window: dict[str, int]) -> dict[str, Any]:
    everywhere = {"window_size_left": -1, "window_size_right": -1}
    plain = {"dropout_p": 0.0, "causal": False, "softcap": 0.0, "alibi_slopes": None}
    return plain | everywhere | window


def _forward_2(module: Any, *qkv: Tensor, **window: int) -> Sequence[Tensor]:
    options = _options_2(window)
    return module._flash_attn_forward(*qkv, softmax_scale=1.0, return_softmax=False, **options)[:2]


def _backward_2(module: Any, grad: Tensor, *saved: Tensor, **window: int) -> Sequence[Tensor]:
    grads = [torch.empty_like(t) for t in saved[:3]]
    module._flash_attn_backward(grad, *saved, *grads, **_settings(), **_options_2(window))
    return grads


def _options_torch(q: Tensor, k: Tensor) -> dict[str, Any]:
    lengths = {"cum_seq_q": None, "cum_seq_k": None, "max_q": q.shape[1], "max_k": k.shape[1]}
    return {**lengths, "dropout_p": 0.0, "is_causal": False, "scale": 1.0}


def _forward_torch(module: Any, *qkv: Tensor, **window: int) -> Sequence[Tensor]:
    options = _options_torch(*qkv[:2])
    return torch.ops.aten._flash_attention_forward(
        *qkv, return_debug_mask=False, **options, **window
    )[:2]


def _backward_torch(module: Any, grad: Tensor, *saved: Tensor, **window: int) -> Sequence[Tensor]:
    state = torch.empty(2, dtype=torch.uint64, device=grad.device)  # of dropout: never read
    return torch.ops.aten._flash_attention_backward(
        grad, *saved, rng_state=state, unused=state[0], **_options_torch(*saved[:2]), **window
    )


PACKAGES = (
    Build("flash-attn-4", "flash_attn.cute.interface", range(9, 11), _forward_4, _backward_4),
    Build("flash-attn-3", "flash_attn_interface", range(9, 10), _forward_3, _backward_3),
    Build("flash-attn", "flash_attn.flash_attn_interface", range(8, 13), _forward_2, _backward_2),
)
PYTORCH = Build("PyTorch", "torch", range(8, 13), _forward_torch, _backward_torch)
