"""PyTorch's memory-efficient attention (CUTLASS), which takes any bias and any precision on CUDA.

Shapes: B rows, H query heads, G key-value heads, T queries, N keys, D head size.
"""

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

LANES = 8
"""Rows of a bias must start at multiples of this many numbers."""
LSE_BLOCK = 32
"""The backward pass reads the log-sum-exp in blocks of this many queries."""


@final
class Efficient:
    """Memory-efficient attention, by the private operators that give and take a log-sum-exp.

    A bias is rounded to the query's precision: logarithms of counts lose digits in half precision.
    """

    name = "sdpa"
    bands = False

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, band: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output [B, H, T, D] and the log-sum-exp [B, H, T], float32; takes no band."""
        assert band is None, "the caller gives a band as a bias"
        key, value = (_repeat_kv(t, query.shape[1]) for t in (key, value))
        out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, _aligned(bias, query), compute_log_sumexp=True, scale=1.0
        )
        lse = lse[..., : query.shape[2]]
        if bias is not None:
            # the operator gives 0 where nothing is seen, which would count as one more key
            lse = lse.masked_fill(bias.amax(-1) == -torch.inf, -torch.inf)
        return out, lse

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
        """Return the gradients of query, key and value under the joint `out` and `lse`."""
        assert band is None, "the caller gives a band as a bias"
        heads, groups = query.shape[1], key.shape[1]
        key, value = (_repeat_kv(t, heads) for t in (key, value))
        # of the output's strides the operator reads only some, and takes it for [B, T, H, D]
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        lse = pad(lse, (0, -lse.shape[-1] % LSE_BLOCK), value=torch.inf)
        unused = query.new_empty((), dtype=torch.int64)  # the state of dropout
        dquery, dkey, dvalue, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            grad,
            query,
            key,
            value,
            _aligned(bias, query),
            out,
            lse,
            philox_seed=unused,
            philox_offset=unused,
            dropout_p=0.0,
            grad_input_mask=[True, True, True, False],
            scale=1.0,
        )
        return dquery, _summed(dkey, groups), _summed(dvalue, groups)


def _repeat_kv(tensor: Tensor, heads: int) -> Tensor:
    """Repeat keys or values for every query head: the operator knows no groups."""
    return tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _summed(grad: Tensor, groups: int) -> Tensor:
    """Sum a gradient [B, H, N, D] over the query heads of a group: [B, G, N, D]."""
    return grad.unflatten(1, (groups, -1)).sum(2)


def _aligned(bias: Tensor | None, query: Tensor) -> Tensor | None:
    """Return the bias as the operator reads it, [B, H, T, N] over storage with aligned rows."""
    if bias is None:
        return None
    keys = bias.shape[-1]
    bias = pad(bias.to(query.dtype), (0, -keys % LANES)).contiguous()
    return bias[..., :keys].expand(*query.shape[:2], -1, -1)
