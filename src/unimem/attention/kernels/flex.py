"""PyTorch's flex_attention: any bias, and bands whose hidden blocks are skipped.

Shapes: B rows, H query heads, G key-value heads, T queries, N keys, D head size.
"""

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)


@final
class Flex:
    """flex_attention, compiled on CUDA; on CPU it is slow and has no backward pass."""

    name = "flex"
    bands = True

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, band: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output [B, H, T, D] and the log-sum-exp [B, H, T], float32 at least."""
        T, N = query.shape[2], key.shape[2]
        attend = _compiled() if query.is_cuda else _plain
        out, aux = attend(
            query,
            key,
            value,
            score_mod=None if bias is None else _adding(bias),
            block_mask=None if band is None else _within(band, T, N, query.device),
            scale=1.0,
            enable_gqa=True,
            return_aux=AuxRequest(lse=True),
        )
        return out, aux.lse

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        band: int | None,
        out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value under the joint `out` and `lse`.

        The forward pass is run again. Raises RuntimeError on CPU.
        """
        if query.device.type == "cpu":
            raise RuntimeError(
                "flex_attention has no backward pass on CPU; choose another kernel to train there"
            )
        query, key, value = (t.detach().requires_grad_() for t in (query, key, value))
        with torch.enable_grad():
            part_out, part_lse = self.forward(query, key, value, bias, band)
        grads = part_gradient(grad, out, lse, part_out.detach(), part_lse.detach())
        dquery, dkey, dvalue = torch.autograd.grad((part_out, part_lse), (query, key, value), grads)
        return dquery, dkey, dvalue


def part_gradient(
    grad: Tensor, out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a part's output and log-sum-exp from that of the joint output.

    With weight w = exp(part_lse - lse) of the part, out = sum of w * part_out over the parts, hence
    d part_out = w * grad, and d part_lse = w * (grad . part_out - grad . out).
    """
    weight = (part_lse - lse).exp()
    dlse = weight * (grad.to(lse.dtype) * (part_out.to(lse.dtype) - out.to(lse.dtype))).sum(-1)
    return (weight[..., None] * grad).to(part_out.dtype), dlse


@cache
def _compiled() -> Callable[..., Any]:
    """Compile once, for every shape."""
    return torch.compile(flex_attention, dynamic=True)


def _plain(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """Run without compiling a kernel; what needs a gradient would be refused."""
    with warnings.catch_warnings():
        # it warns that it writes the logits out, which is known of the CPU
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(query.detach(), key.detach(), value.detach(), **options)


def _adding(bias: Tensor) -> Callable[..., Tensor]:
    """Add a bias [B or 1, 1 or H, T, N] to the logits."""
    rows, heads = bias.shape[0] > 1, bias.shape[1] > 1

    def add(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[b if rows else 0, h if heads else 0, q, k]

    return add


@lru_cache(maxsize=64)
def _within(band: int, T: int, N: int, device: torch.device) -> BlockMask:
    """Return which blocks of keys a band shows."""

    def within(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k - q <= nearest) & (k - q >= farthest)

    with torch.inference_mode(False):  # the mask is kept, and may be used in training later
        # tensors, because numbers would be compiled in, once for every length of the memory
        nearest = torch.tensor(N - T, device=device)
        farthest = nearest - band
        return create_block_mask(within, None, None, T, N, device=device)
