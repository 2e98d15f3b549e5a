"""One softmax over several sets of keys, without materialising the logits.

Each part returns its output and log-sum-exp; weighted by the latter they are one softmax. In the
backward pass a part only needs the output and log-sum-exp over all parts: the weight of a key is
exp(logit - lse), and the gradient of its logit is that weight times (grad . value - grad . out). No
weights are kept, and the log-sum-exp of a part needs no gradient.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, N keys of a part, K picks,
D head size.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unimem.attention.kernels.base import Kernel, accumulation_dtype

GATHERED = 1 << 24
"""Numbers of picked keys or values that are gathered at once, at most."""


class Dense(NamedTuple):
    """Queries and a set of keys that most queries see; see `Kernel`."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None = None
    band: int | None = None


class Sparse(NamedTuple):
    """Queries [B, H, T, D] and the K slots of keys and values [B, G, M, D] that each query picked.

    index and logits [B, H, T, K]; a logit of -inf means no pick. The logits are the products of
    query and keys, given as constants: their gradient goes to query and keys.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    index: Tensor
    logits: Tensor


def merge_parts(kernel: Kernel, dense: Sequence[Dense], sparse: Sparse | None = None) -> Tensor:
    """Return the softmax-weighted values [B, H, T, D] over all parts; 0 where a query sees nothing.

    Memory-efficient in both directions; no second derivative.
    """
    tensors = [part[:4] for part in dense]
    bands = [part.band for part in dense]
    picked = () if sparse is None else sparse
    return _MergeParts.apply(kernel, bands, *(t for part in tensors for t in part), *picked)


class _MergeParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, bands: list[int | None], *tensors: Any) -> Tensor:
        dense, sparse = _parts(bands, tensors)
        found = [kernel.forward(*part) for part in dense]
        totals = [lse for _, lse in found]
        if sparse is not None:
            totals.append(sparse.logits.logsumexp(-1))
        lse = totals[0] if len(totals) == 1 else torch.stack(totals).logsumexp(0)
        lse = lse.masked_fill(lse == -torch.inf, 0)
        if len(totals) == 1 and found:
            out = found[0][0]
        else:
            out = torch.zeros((), dtype=lse.dtype, device=lse.device)
            for each, own in found:
                out = out + each * (own - lse).exp()[..., None]
            if sparse is not None:
                weights = (sparse.logits - lse[..., None]).exp()
                out = out + gather_weighted_sum(sparse.values, sparse.index, weights)
            out = out.to(tensors[0].dtype)
        ctx.save_for_backward(*tensors, out, lse)
        ctx.kernel, ctx.bands = kernel, bands
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        *tensors, out, lse = ctx.saved_tensors
        dense, sparse = _parts(ctx.bands, tensors)
        result: list[Tensor | None] = [None, None]
        for part in dense:
            result += [*ctx.kernel.backward(grad, *part, out, lse), None]
        if sparse is None:
            return tuple(result)
        needs = ctx.needs_input_grad[2 + 4 * len(dense) :]
        weights = (sparse.logits - lse[..., None]).exp()
        delta = (grad * out).sum(-1, keepdim=True, dtype=lse.dtype)
        slopes = weights * (picked_dot(grad, sparse.values, sparse.index) - delta)
        result.append(gather_weighted_sum(sparse.keys, sparse.index, slopes).to(sparse.query.dtype))
        for needed, source, scale in ((needs[1], sparse.query, slopes), (needs[2], grad, weights)):
            result.append(
                scatter_weighted_sum(source, sparse.index, scale, sparse.keys) if needed else None
            )
        return (*result, None, None)


def _parts(bands: list[int | None], tensors: Sequence[Any]) -> tuple[list[Dense], Sparse | None]:
    """Split the flat tensors into those of each part."""
    count = 4 * len(bands)
    dense = [
        Dense(*tensors[4 * i : 4 * i + 4], band)  # type: ignore[arg-type]
        for i, band in enumerate(bands)
    ]
    return dense, Sparse(*tensors[count:]) if len(tensors) > count else None


def picked_dot(query: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    """Multiply each query [B, H, T, D] with the keys [B, G, M, D] it picked: [B, H, T, K]."""
    out = torch.empty(index.shape, dtype=accumulation_dtype(query.dtype), device=query.device)
    for table, picks, rows, into in _tables(keys, index, query, out):
        into.copy_(dots(rows, table, picks))
    return out


def dots(query: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    """Multiply each query [R, D] with the keys [M, D] that it picked [R, K], float32 at least."""
    R, K = index.shape
    if _bags(keys):
        where = torch.arange(R)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            query.contiguous(), keys, index.flatten(), where * K, where.repeat_interleave(K), 0
        ).view(R, K)
    out = torch.empty(R, K, dtype=accumulation_dtype(query.dtype), device=query.device)
    for part in _chunks(index, keys):
        gathered = keys.index_select(0, index[part].flatten()).unflatten(0, (-1, K)).to(out.dtype)
        # Keys on the right: a product with a vector on the right is much slower on a CPU.
        out[part] = (query[part, None].to(out.dtype) @ gathered.mT)[:, 0]
    return out


def gather_weighted_sum(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum the picked rows of a table [B, G, M, D] under weights [B, H, T, K]: [B, H, T, D]."""
    out = weights.new_empty(*index.shape[:3], table.shape[3])
    for rows, picks, scale, into in _tables(table, index, weights, out):
        if _bags(rows):
            into.copy_(F.embedding_bag(picks, rows, per_sample_weights=scale, mode="sum"))
            continue
        for part in _chunks(picks, rows):
            into[part] = (scale[part][:, None] @ rows[picks[part]].to(scale.dtype))[:, 0]
    return out


def scatter_weighted_sum(source: Tensor, index: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """Sum for each slot of `like` [B, G, M, D] the rows of source [B, H, T, D] that picked it."""
    out = torch.zeros(like.shape, dtype=weights.dtype, device=like.device)
    for into, picks, rows, scale in _tables(out, index, source, weights):
        # Sorted by slot, the queries of a slot are one bag: no two threads add to one number.
        order = picks.flatten().argsort(stable=True)
        counts = torch.bincount(picks.flatten(), minlength=len(into))
        into += F.embedding_bag(
            order // picks.shape[1],
            rows.to(scale.dtype).contiguous(),
            counts.cumsum(0) - counts,
            per_sample_weights=scale.flatten()[order],
            mode="sum",
        )
    return out.to(like.dtype)


def _tables(table: Tensor, index: Tensor, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield table [M', D], index [R, K] and the other tensors of each query [R, ...] as views.

    On the CPU one group of heads at a time, so that a table that is a view of a buffer is not
    copied; on a GPU all groups at once, for one kernel launch.
    """
    B, G, M, _ = table.shape
    grouped = [x.unflatten(1, (G, -1)) for x in (index, *rows)]
    if table.is_cuda:
        start = torch.arange(B * G, device=table.device).view(B, G, 1, 1, 1) * M
        grouped[0] = grouped[0] + start
        yield table.reshape(B * G * M, -1), *(_flat(x, 4) for x in grouped)
        return
    for b in range(B):
        for g in range(G):
            yield table[b, g], *(_flat(x[b, g], 2) for x in grouped)


def _flat(x: Tensor, dims: int) -> Tensor:
    return x.flatten(0, dims - 1)


def _bags(table: Tensor) -> bool:
    """Whether embedding_bag sums rows in full precision here; it needs no gathered copy."""
    return table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64)


def _chunks(index: Tensor, table: Tensor) -> Iterator[slice]:
    size = max(GATHERED // (index.shape[1] * table.shape[1] or 1), 1)
    for start in range(0, len(index), size):
        yield slice(start, start + size)
