"""What a kernel of dense attention must do so that its part of a softmax can be merged with others.

Shapes: B rows, H query heads, G key-value heads, T queries, N keys, D head size.
"""

from typing import Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """Attention over one set of keys, with its log-sum-exp; logits are plain dot products.

    query [B, H, T, D]; key and value [B, G, N, D], query heads in groups of H / G. What a query
    sees is said by bias [B or 1, 1 or H, T, N], added to the logits (in query's dtype, -inf hides),
    or by `band`: the keys from the query's own, counted from the end, to the one `band` before it.
    With neither it sees all; never are both given.
    """

    name: str
    bands: bool
    """Whether it knows bands, and is the faster for it."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, band: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output [B, H, T, D] and the log-sum-exp [B, H, T], float32 at least.

        A query that sees nothing gets 0 and -inf.
        """
        ...

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
        """Return the gradients of query, key and value under the output of a wider softmax.

        `out` and `lse` are those of the softmax over all parts, of which these keys are one.
        """
        ...


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to sum numbers of another in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def materialised(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, band: int | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `Kernel.forward` says with the logits written out, for comparison."""
    logits = torch.einsum("bgntd,bgsd->bgnts", query.unflatten(1, (key.shape[1], -1)), key)
    logits = logits.flatten(1, 2)
    T, N = logits.shape[-2:]
    if band is not None:
        ahead = torch.arange(N) - torch.arange(N - T, N)[:, None]
        hidden = ((ahead > 0) | (ahead < -band)).to(logits.device)
        logits = logits.masked_fill(hidden, -torch.inf)
    if bias is not None:
        logits = logits + bias
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    out = torch.einsum("bgnts,bgsd->bgntd", weights.unflatten(1, (key.shape[1], -1)), value)
    return out.flatten(1, 2), lse
