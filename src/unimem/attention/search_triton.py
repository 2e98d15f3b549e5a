"""Top-k search among memory slots on CUDA without writing the scores out.

Two passes over tiles of slots, each with its own matrix product. The slots fall into as many
classes as a tile has columns, and the first pass keeps the largest score of each class, as TPU-KNN
does (Chern 2022, arXiv 2206.14286). There the search ends, nearly exact; here the k-th largest of
these is a lower bound of the k-th score, and a second pass notes the few slots that reach it.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, the newest W, D head size;
R = H / G * T queries of a key-value head, BM of which meet BN slots in a tile, DC of their DP
numbers at once.
"""

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from unimem.memory.tensors import full_precision

MOST = 64  # the largest k of the two passes; classes for more outgrow the registers
PIECE = 2**24  # scores written out at once where the two passes are not enough
LOWEST = torch.finfo(torch.float32).min


@torch.no_grad()
def search(
    query: Tensor, keys: Tensor, k: int, open: Tensor, taken: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the k' = min(k, M) slots of the largest query . key, in any order, and these logits.

    query [B, H, T, D] and keys [B, G, M, D] are of one floating type, on a CUDA device (or on the
    CPU under TRITON_INTERPRET=1); query heads share key-value heads in runs of H / G. `open`
    [B, 1 or G, M] says which slots may be chosen at all, `taken` [B, 1 or H, T, W] which of the
    newest W slots each query must not choose. Raises ValueError where these do not fit together.

    Gives indices [B, H, T, k'] int64 and logits [B, H, T, k'] float32, without gradient. Where
    fewer slots can be chosen the logit is -inf and the index 0; a logit that is NaN is not chosen.

    Exact: float32 is multiplied as such, half precision is added up in float32. A query of which
    more slots reach the bound than are kept (4 k' or more, at least 64), as among equal keys, is
    searched again with its scores written out, a piece at a time. So is every query if k' is above
    64, or the type has neither 16 nor 32 bits.
    """
    B, H, T, _ = query.shape
    G, M = keys.shape[1:3]
    if query.dtype != keys.dtype or not query.is_floating_point():
        raise ValueError(f"query is {query.dtype} and keys are {keys.dtype}; give one float type")
    if H % G:
        raise ValueError(f"{H} query heads cannot share {G} key-value heads evenly")
    taken = open.new_empty(B, 1, T, 0) if taken is None else taken
    if taken.shape[-1] > M:
        raise ValueError(f"taken is of the newest {taken.shape[-1]} slots, but there are {M}")
    k, R = min(k, M), H // G * T
    given = (query, keys, open.expand(B, G, M), taken)
    if k * R and k <= MOST and query.element_size() in (2, 4):
        with torch.cuda.device_of(query):
            index, logits, again = _two_passes(given, k)
    else:
        index = query.new_empty((B, G, R, k), dtype=torch.int64)
        logits = torch.empty_like(index, dtype=torch.float32)
        again = open.new_ones(B, G, R if k else 0)
    if again.any():
        _written_out(given, again, index, logits)
    return index.view(B, H, T, k), logits.view(B, H, T, k)


def _two_passes(given: tuple[Tensor, ...], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices and logits [B, G, R, k], and which rows [B, G, R] must be searched again."""
    query, keys, open, taken = given
    if knobs.runtime.interpret and query.dtype == torch.bfloat16:
        query, keys = query.float(), keys.float()  # it would multiply their bit patterns
    (B, H, T, D), (G, M), W = query.shape, keys.shape[1:3], taken.shape[-1]
    tile = _tile(k, D, query.element_size())
    R, BN = H // G * T, tile["BN"]
    # in whole tiles it loads in wide pieces; otherwise pointers fill the registers
    first = (M - W) // BN * BN
    taken = torch.nn.functional.pad(taken, (M - W - first, -M % BN)).contiguous()
    query, keys = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, keys))
    given = (query, keys, open.view(torch.uint8), taken.view(torch.uint8).expand(B, H, T, -1))
    sizes = (*(x.stride() for x in given), G, T, R, M, first, D)
    launch: Any = _pass[(triton.cdiv(R, tile["BM"]), B * G)]
    best = query.new_empty(B, G, R, BN, dtype=torch.float32)
    launch(best, None, None, None, *given, *sizes, **tile)
    bound = best.topk(k, -1).values[..., -1].clamp_min(LOWEST)
    best.fill_(-torch.inf)
    slots = torch.zeros_like(best, dtype=torch.int32)
    count = torch.empty_like(bound, dtype=torch.int32)
    launch(best, bound, slots, count, *given, *sizes, **tile)
    top = best.topk(k, -1, sorted=False)
    # fewer than k at a bound that k reach: the passes rounded a product differently
    again = (count > BN) | ((count < k) & (bound > LOWEST))
    return slots.gather(-1, top.indices).long(), top.values, again


def _tile(k: int, D: int, size: int) -> dict[str, int]:
    """Return the shape of a tile of numbers of `size` bytes; constants, not autotuned."""
    # Four classes for each slot wanted: at k = 32 of random keys 36 slots reach the bound.
    BN = max(64, 1 << (4 * k - 1).bit_length())
    # Tensor cores take long rows, and on Hopper 64 of them for each four warps. Exact float32
    # products are made in registers, where 16 numbers of few rows fit.
    BM, DC = (64, min(128, max(16, 1 << (D - 1).bit_length()))) if size == 2 else (32, 16)
    tile = {"DP": triton.cdiv(D, DC) * DC, "DC": DC, "BM": BM, "BN": BN}
    # At most 128 KiB of keys on their way, of the 227 KiB of an H100 and the 163 of an A100; with
    # BN = 128 at most 64, so that two programs share an H100's multiprocessor.
    return tile | {"num_warps": 8 if BN > 128 else 4, "num_stages": 3 if BN * DC < 2**14 else 2}


def _written_out(given: tuple[Tensor, ...], rows: Tensor, index: Tensor, logits: Tensor) -> None:
    """Fill `rows` [B, G, R] of index and logits [B, G, R, k], writing their scores out."""
    query, keys, open, taken = given
    (B, H, T, _), (G, M), W = query.shape, keys.shape[1:3], taken.shape[-1]
    wide = torch.promote_types(query.dtype, torch.float32)
    for b, g in product(range(B), range(G)):
        for some in rows[b, g].nonzero()[:, 0].split(max(1, PIECE // M)):
            head, time = g * (H // G) + some // T, some % T
            with full_precision(query):
                scores = query[b, head, time].to(wide) @ keys[b, g].to(wide).T
            scores.masked_fill_(scores.isnan() | ~open[b, g], -torch.inf)
            scores[:, M - W :].masked_fill_(taken[b, head % taken.shape[1], time], -torch.inf)
            top = scores.topk(index.shape[-1], -1, sorted=False)
            index[b, g, some] = top.indices.masked_fill(top.values == -torch.inf, 0)
            logits[b, g, some] = top.values.float()


@triton.jit(do_not_specialize=["G", "T", "R", "M", "FIRST"])  # not compiled again for each length
def _pass(
    BEST, BOUND, SLOTS, COUNT, QUERY, KEY, OPEN, TAKEN, q_by, k_by, o_by, t_by, G, T, R, M, FIRST,
    D: tl.constexpr, DP: tl.constexpr, DC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return the BEST score of each class; or, with BOUND, of the first BN slots that reach it."""
    pair = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    real = row < R
    # 64 bits where a tensor may be larger than 32 bits reach; within a tile 32 are enough
    b, g = (pair // G).to(tl.int64), (pair % G).to(tl.int64)
    head, time = g * (R // T) + row // T, (row % T).to(tl.int64)
    QUERY += b * q_by[0] + head * q_by[1] + time * q_by[2]
    TAKEN += b * t_by[0] + head * t_by[1] + time * t_by[2]
    KEY += b * k_by[0] + g * k_by[1]
    OPEN += b * o_by[0] + g * o_by[1]
    out = pair.to(tl.int64) * R + row
    column, d = tl.arange(0, BN), tl.arange(0, DC)
    if DC == DP:
        query = tl.load(QUERY[:, None] + d[None, :], real[:, None] & (d[None, :] < D), other=0.0)
    best = tl.full((BM, BN), float("-inf"), tl.float32)
    count = tl.full((BM,), 0, tl.int32)
    if BOUND is not None:
        bound = tl.load(BOUND + out, mask=real, other=float("inf"))
    # only tiles from FIRST on have slots that may be taken
    for newest in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        for step in range(0, M - FIRST if newest else FIRST, BN):
            start = step + FIRST * newest
            # turned by a column a tile, lest slots at every 64th place be of one class
            rotate = 0 if newest else start // BN
            place = (column + rotate) % BN
            inside = place < M - start
            at = KEY + tl.cast(start, tl.int64) * k_by[2] + place[None, :] * k_by[2] + d[:, None]
            if DC == DP:
                key = tl.load(at, mask=inside[None, :] & (d[:, None] < D), other=0.0)
                score = tl.dot(query, key, input_precision="ieee")
            else:
                score = tl.full((BM, BN), 0.0, tl.float32)
                for c in range(0, DP, DC):
                    part = real[:, None] & (c + d[None, :] < D)
                    query = tl.load(QUERY[:, None] + c + d[None, :], mask=part, other=0.0)
                    key = tl.load(at + c, mask=inside[None, :] & (c + d[:, None] < D), other=0.0)
                    score = tl.dot(query, key, score, input_precision="ieee")
            free = tl.load(OPEN + (start + place) * o_by[2], mask=inside, other=0) != 0
            score = tl.where(free[None, :] & (score == score), score, float("-inf"))
            if newest:
                barred = tl.load(TAKEN[:, None] + step + column[None, :], real[:, None], other=0)
                score = tl.where(barred != 0, float("-inf"), score)
            if BOUND is None:
                best = tl.maximum(best, score)
            else:
                # One a row at a time: few rows find more, and to rank all takes too many registers.
                top = tl.max(score, 1)
                hit = (top >= bound) & (count <= BN)
                more = tl.max(hit.to(tl.int32), 0)
                # a loop that is not inside a condition keeps the next tile from loading ahead
                if more > 0:
                    while more > 0:
                        found = tl.min(tl.where(score == top[:, None], column[None, :], BN), 1)
                        room = hit & (count < BN)
                        tl.store(BEST + out * BN + count, top, mask=room)
                        tl.store(SLOTS + out * BN + count, start + (found + rotate) % BN, mask=room)
                        count += hit.to(tl.int32)
                        score = tl.where(column[None, :] == found[:, None], float("-inf"), score)
                        top = tl.max(score, 1)
                        hit = (top >= bound) & (count <= BN)
                        more = tl.max(hit.to(tl.int32), 0)
    if BOUND is None:
        tl.store(BEST + out[:, None] * BN + column[None, :], best, mask=real[:, None])
    else:
        tl.store(COUNT + out, count, mask=real)
