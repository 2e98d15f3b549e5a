"""PyTorch's own flash attention on the CPU, which knows its log-sum-exp."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unimem.attention.kernels.base import Kernel, accumulation_dtype

ROWS = 128
"""Queries whose hidden keys are left out together."""


class CpuFlash(Kernel):
    """Blocks of logits that stay in the cache. Grouped heads are read where they are.

    The operator multiplies whatever a mask hides, so keys that a block of queries does not see at
    all are left out first; not under `torch.compile`, for which shapes must not depend on a mask.
    """

    name = "sdpa"
    bands = False

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, band: int | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel.forward`; it gets no band."""
        if bias is None or torch.compiler.is_compiling():
            out, lse = _forward(query, key, value, bias)
        else:
            out = torch.zeros_like(query)
            lse = query.new_zeros(query.shape[:3], dtype=accumulation_dtype(query.dtype))
            for rows, columns in _pieces(bias):
                part = query[:, :, rows], key[:, :, columns], value[:, :, columns]
                found = _forward(*part, bias[:, :, rows][..., columns])
                out[:, :, rows], lse[:, :, rows] = found
        if bias is not None:
            # where all is hidden it says 0, which another part would take for a weight of 1
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
        """See `Kernel.backward`; it gets no band."""
        if bias is None or torch.compiler.is_compiling():
            return _backward(grad, query, key, value, out, lse, bias)
        queries = torch.zeros_like(query)
        sums = [torch.zeros_like(x, dtype=accumulation_dtype(x.dtype)) for x in (key, value)]
        for rows, columns in _pieces(bias):
            mine, *theirs = _backward(
                *(x[:, :, rows] for x in (grad, query)),
                *(x[:, :, columns] for x in (key, value)),
                *(x[:, :, rows] for x in (out, lse)),
                bias[:, :, rows][..., columns],
            )
            queries[:, :, rows] = mine
            for total, own in zip(sums, theirs, strict=True):
                if isinstance(columns, slice):
                    total[:, :, columns] += own
                else:
                    total.index_add_(2, columns, own.to(total.dtype))
        keys, values = sums
        return queries, keys.to(key.dtype), values.to(value.dtype)


def _pieces(bias: Tensor) -> Iterator[tuple[slice, slice | Tensor]]:
    """Return blocks of queries and the keys that each block sees: a slice if contiguous."""
    for start in range(0, bias.shape[2], ROWS):
        rows = slice(start, start + ROWS)
        columns = (bias[:, :, rows].amax((0, 1, 2)) > -torch.inf).nonzero()[:, 0]
        if not len(columns):
            continue
        first, last = int(columns[0]), int(columns[-1])
        yield (
            rows,
            slice(first, last + 1) if last - first + 1 == len(columns) else columns,
        )


def _forward(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    query, key, value, bias = tensors
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=bias, scale=1.0
    )


def _backward(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    *given, bias = tensors
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *given, 0.0, False, attn_mask=bias, scale=1.0
    )
