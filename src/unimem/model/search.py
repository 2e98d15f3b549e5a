"""The slots with the largest logits, found without writing all logits out.

Exact: the k largest logits lie in the k blocks with the largest maxima. So of each chunk of logits,
which stays in the cache, only maxima of blocks, of blocks of blocks and so on are looked at, then k
blocks of each level on the way back.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size, R queries of all
heads of a group, W slots.
"""

import torch
from torch import Tensor

ROWS = 64
"""Queries in a chunk: enough for the product to run at full speed."""
TILE = 4096
"""Keys in one product: its result is reduced while it is in the cache."""
PANEL = 1 << 16
"""Keys of which all logits of a chunk are held at once."""
FAN = 8, 16
"""Blocks that one block of the next level spans, for many picks and for few."""
FEW = 8
"""Picks so few that looking at the slots of wide blocks costs less than another pass."""
TOP = 256
"""Blocks among which the largest are chosen outright."""


@torch.library.custom_op("unimem::search", mutates_args=())
def search(
    query: Tensor, keys: Tensor, k: int, open: Tensor, taken: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Give for each query the k slots of largest logit, as constants, in any order.

    query [B, H, T, D], keys [B, G, M, D], query heads in groups of H / G. open [B, 1 or G, M] says
    which slots can be chosen; taken [B, 1 or H, T, W] which of the newest W each query must not.
    Gives indices and logits [B, H, T, min(k, M)], the logits in float32 at least; where fewer can
    be chosen the index is 0 and the logit -inf. Products are float32 at least on the CPU. Which of
    equals are chosen is open.
    """
    if query.is_cuda and query.dtype != torch.float64 and _triton():
        from unimem.model.search_triton import search as on_gpu

        return on_gpu(query, keys, k, open, taken)
    B, H, T, D = query.shape
    G, M = keys.shape[1:3]
    R, k = H // G * T, min(k, M)
    dtype = torch.promote_types(query.dtype, torch.float32)
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
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(shape, dtype=torch.long), query.new_empty(shape, dtype=dtype)


def _triton() -> bool:
    """Say whether Triton is there."""
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
    fan, levels = FAN[k <= FEW], 0
    while -(-N // fan**levels) > TOP and -(-N // fan ** (levels + 1)) >= k:
        levels += 1
    unit = fan**levels
    sizes = [-(-N // unit) * unit // fan**level for level in range(levels + 1)]
    tile = -(-TILE // unit) * unit
    if hidden is not None:
        # to be added: a mask is filled in number by number
        hidden = query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    buffers = [query.new_empty(size * min(ROWS, R)) for size in sizes]
    index = torch.empty(R, k, dtype=torch.long, device=query.device)
    logits = query.new_empty(R, k)
    child = torch.arange(fan, device=query.device)
    for r in range(0, R, ROWS):
        chunk = query[r : r + ROWS].T
        m = chunk.shape[1]
        # a column for each query, so that maxima over keys run along whole rows of memory
        tree = [b[: size * m].view(size, m) for b, size in zip(buffers, sizes, strict=True)]
        tree[0][N:] = -torch.inf
        for start in range(0, N, tile):
            end = min(start + tile, N)
            torch.mm(keys[start:end], chunk, out=tree[0][start:end])
            if hidden is not None and end > N - len(hidden):
                first = max(start, N - len(hidden))
                mine = hidden[first - (N - len(hidden)) : end - (N - len(hidden))]
                tree[0][first:end] += _columns(mine, r, m)
            if levels:
                end = min(start + tile, sizes[0])
                whole = tree[0][start:end].view(-1, fan, m)
                torch.amax(whole, 1, out=tree[1][start // fan : end // fan])
        for below, above in zip(tree[1:], tree[2:], strict=False):
            torch.amax(below.view(-1, fan, m), 1, out=above)
        best, slot = tree[-1].T.contiguous().topk(k, 1, sorted=False)
        column = torch.arange(m, device=query.device)[:, None]
        for level in reversed(tree[:-1]):
            candidate = (slot[:, :, None] * fan + child).flatten(1)
            flat = (candidate * m + column).flatten()
            values = level.view(-1).index_select(0, flat).view(candidate.shape)
            best, place = values.topk(k, 1, sorted=False)
            slot = candidate.gather(1, place)
        index[r : r + m], logits[r : r + m] = slot, best
    return index, logits


def _columns(mask: Tensor, first: int, count: int) -> Tensor:
    """Take `count` columns from `first` on of a mask [W, P] that repeats after P."""
    first %= mask.shape[1]
    if first + count <= mask.shape[1]:
        return mask[:, first : first + count]
    columns = torch.arange(first, first + count, device=mask.device) % mask.shape[1]
    return mask[:, columns]
