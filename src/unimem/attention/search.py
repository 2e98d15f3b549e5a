"""The slots with the largest logits, found without writing all logits out.

Exact: the k largest logits lie in the k blocks with the largest maxima. So of many
logits nothing is kept but the maxima of blocks, of blocks of blocks and so on; on the way back k
blocks of each level are looked at, and the logits in the last of them are computed once more.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size, R queries of all
heads of a group, W slots.
"""

import torch
from torch import Tensor

from unimem.attention.kernels.base import accumulation_dtype
from unimem.attention.merge import dots

ROWS = 512
"""Queries in a chunk at most: enough for the product to run at full speed, and for few chunks."""
TILE = 1024
"""Keys in one product, a multiple of `FAN`: its result is reduced while it is in the cache."""
PANEL = 1 << 16
"""Keys of which the maxima are held at once."""
KEPT = 4096
"""Keys so few that their logits are kept, and not computed once more."""
HELD = 1 << 21
"""Logits or maxima of a chunk that are held at most, where that leaves `FEWEST` queries."""
FEWEST = 64
FAN = 8
"""Blocks that one block of the next level spans."""
TOP = 512
"""Blocks among which the largest are chosen outright."""


@torch.library.custom_op("unimem::search", mutates_args=())
def search(
    query: Tensor, keys: Tensor, k: int, open: Tensor, taken: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return for each query the k slots of largest logit, as constants, in any order.

    query [B, H, T, D], keys [B, G, M, D], query heads in groups of H / G. open [B, 1 or G, M] says
    which slots can be chosen; taken [B, 1 or H, T, W] which of the newest W each query must not.
    Gives indices and logits [B, H, T, min(k, M)], the logits in float32 at least; where fewer can
    be chosen the index is 0 and the logit -inf. Products are float32 at least on the CPU. Which of
    equals are chosen is open.
    """
    if query.is_cuda and query.dtype != torch.float64 and _triton():
        from unimem.attention.search_triton import search as on_gpu

        return on_gpu(query, keys, k, open, taken)
    B, H, T, D = query.shape
    G, M = keys.shape[1:3]
    R, k = H // G * T, min(k, M)
    dtype = accumulation_dtype(query.dtype)
    index = torch.empty(B, G, R, k, dtype=torch.long, device=query.device)
    logits = torch.empty(B, G, R, k, dtype=dtype, device=query.device)
    rows = query.to(dtype).reshape(B, G, R, D)
    for b in range(B):
        for g in range(G):
            mine = open[b, g % open.shape[1]]
            hidden = None
            if taken is not None:
                heads = slice(g * H // G, (g + 1) * H // G) if taken.shape[1] > 1 else slice(0, 1)
                hidden = taken[b, heads].flatten(0, 1).T  # [W, R or T]
            index[b, g], logits[b, g] = _among(rows[b, g], keys[b, g], k, mine, hidden)
    return index.view(B, H, T, k), logits.view(B, H, T, k)


@search.register_fake
def _(query: Tensor, keys: Tensor, k: int, open: Tensor, taken: Tensor | None):
    shape = (*query.shape[:3], min(k, keys.shape[2]))
    dtype = accumulation_dtype(query.dtype)
    return query.new_empty(shape, dtype=torch.long), query.new_empty(shape, dtype=dtype)


def _triton() -> bool:
    """Whether Triton is there."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _among(
    query: Tensor, keys: Tensor, k: int, open: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Search the open keys [M, D] for the queries [R, D], panel by panel."""
    slots = None if bool(open.all()) else open.nonzero()[:, 0]
    if slots is not None:
        if hidden is not None:
            hidden = hidden[slots[slots >= len(keys) - len(hidden)] - (len(keys) - len(hidden))]
        keys = keys[slots]
    index = query.new_zeros(len(query), k, dtype=torch.long)
    logits = query.new_full((len(query), k), -torch.inf)
    for start in range(0, len(keys), PANEL):
        panel = keys[start : start + PANEL].to(query.dtype)
        part = None
        if hidden is not None:
            first = max(start - (len(keys) - len(hidden)), 0)
            past = start + len(panel) - (len(keys) - len(hidden))
            part = hidden[first:past] if past > first else None
        found, best = _panel(query, panel, min(k, len(panel)), part)
        if start or best.shape[1] < k:
            logits, place = torch.cat([logits, best], 1).topk(k, 1)
            index = torch.cat([index, found + start], 1).gather(1, place)
        else:
            index, logits = found, best
    if slots is not None and len(slots):
        index = slots[index]
    return index.masked_fill_(logits == -torch.inf, 0), logits


def _panel(query: Tensor, keys: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search all keys [N, D]; of the last len(hidden) those are hidden that `hidden` says.

    hidden [W, R], or [W, T] if it repeats for each head.
    """
    N, R = len(keys), len(query)
    sizes = [N]
    while sizes[-1] > TOP and -(-sizes[-1] // FAN) >= k:
        sizes.append(-(-sizes[-1] // FAN))
    kept = len(sizes) == 1 or N <= KEPT
    held = sizes if kept else sizes[1:]
    rows = min(ROWS, R, max(FEWEST, HELD // held[0]))
    if hidden is not None:
        # to be added: a mask is filled in number by number; the first row is of all older keys
        hidden = torch.cat([hidden.new_zeros(1, hidden.shape[1]), hidden])
        hidden = query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    tile = query.new_empty(TILE, rows)
    tree = [query.new_empty(-(-size // FAN) * FAN, rows) for size in held]
    index = torch.empty(R, k, dtype=torch.long, device=query.device)
    logits = query.new_empty(R, k)
    child = torch.arange(FAN, device=query.device)
    for r in range(0, R, rows):
        chunk = query[r : r + rows]
        m = len(chunk)
        if m < rows:
            # a column for each query, so that maxima over keys run along whole rows of memory
            tile, *tree = (x.view(-1)[: len(x) * m].view(-1, m) for x in (tile, *tree))
        part = None if hidden is None else _columns(hidden, r, m)
        for size, level in zip(held, tree, strict=True):
            level[size:] = -torch.inf
        maxima = tree[1:] if kept else tree
        for start in range(0, N, TILE):
            end = min(start + TILE, N)
            found = tree[0][start:end] if kept else tile[: end - start]
            torch.mm(keys[start:end], chunk.T, out=found)
            if part is not None and end > N - len(part) + 1:
                first = max(start, N - len(part) + 1)
                found[first - start :] += part[first - N + len(part) : end - N + len(part)]
            if maxima:
                _maxima(found, maxima[0][start // FAN : -(-end // FAN)])
        for below, above, size in zip(maxima, maxima[1:], sizes[2:], strict=False):
            _maxima(below[: size * FAN], above[:size])
        best, slot = tree[-1][: sizes[-1]].T.contiguous().topk(k, 1, sorted=False)
        column = torch.arange(m, device=query.device)[:, None]
        for level in tree[-2::-1]:
            slot = (slot[:, :, None] * FAN + child).flatten(1)
            best = level.view(-1).index_select(0, (slot * m + column).flatten()).view(slot.shape)
            best, slot = _largest(best, slot, k)
        if not kept:
            slot = (slot[:, :, None] * FAN + child).flatten(1)
            past = slot >= N
            best = dots(chunk, keys, slot.clamp_max_(N - 1)).masked_fill_(past, -torch.inf)
            if part is not None:
                row = (slot + (len(part) - N)).clamp_min_(0)
                best += part.reshape(-1).index_select(0, (row * m + column).flatten()).view_as(row)
            best, slot = _largest(best, slot, k)
        index[r : r + m], logits[r : r + m] = slot.clamp_max_(N - 1), best
    return index, logits


def _maxima(numbers: Tensor, out: Tensor) -> None:
    """Return the maxima [ceil(N / FAN), m] of blocks of numbers [N, m]; the last may be cut off."""
    whole = len(numbers) // FAN
    torch.amax(numbers[: whole * FAN].unflatten(0, (whole, FAN)), 1, out=out[:whole])
    if whole < len(out):
        torch.amax(numbers[whole * FAN :], 0, out=out[whole])


def _largest(numbers: Tensor, names: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row's numbers [m, C], and their names, in any order."""
    best, place = numbers.topk(k, 1, sorted=False)
    return best, names.gather(1, place)


def _columns(mask: Tensor, first: int, count: int) -> Tensor:
    """Take `count` columns from `first` on of a mask [W, P] that repeats after P."""
    pieces, first = [], first % mask.shape[1]
    while count:
        pieces.append(mask[:, first : first + count])
        count, first = count - pieces[-1].shape[1], 0
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
