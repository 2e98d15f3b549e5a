"""Tensor functions that several options share. Importing them imports no torch.

Shapes: B rows, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """Return of each query head what is said of its key-value head: [B, 1 or heads, ...]."""
    if x.shape[1] in (1, heads) or heads == 1:
        return x
    return x.repeat_interleave(heads // x.shape[1], 1)


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own type if that is more precise."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast from computing in a type of half the bits."""
    import torch

    return torch.autocast(x.device.type, enabled=False)


def to_unit_length(x: Tensor) -> Tensor:
    """Scale vectors to length 1, in float32 at least, as constants."""
    x = at_least_float32(x.detach())
    return x * x.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()
