"""Search alone, against the product of queries and keys that it cannot do without.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size, R queries of all
heads of a group.
"""

from typing import Any

import torch
from torch import Tensor

from unimem.bench.timer import Clock

CHUNK = 256
"""Queries whose scores are written at a time."""
TILE = 2048
"""Keys whose scores stay in the cache of a CPU."""
LARGE = 8192
"""Queries and keys in one product on a GPU."""


def measure_search(
    query: Tensor, keys: Tensor, k: int, repeats: int, clock: Clock
) -> dict[str, Any]:
    """Measure the search of queries [B, H, T, D] among keys [B, G, M, D] for k slots each.

    Gives `search_ms`; `product_ms`, the least that an exact search needs; `topk_ms`, of product and
    `torch.topk`; `share`, search over product; `against_topk`, product and topk over search; and
    all seconds.
    """
    from unimem.attention.search import search

    opened = torch.ones(len(keys), 1, keys.shape[2], dtype=torch.bool, device=keys.device)
    with torch.no_grad():
        times = clock.in_turn(
            {
                "search": lambda: search(query, keys, k, opened, None),
                "product": lambda: product(query, keys),
                "topk": lambda: product_and_topk(query, keys, k),
            },
            repeats,
        )
    least = {name: max(min(seconds), 1e-9) for name, seconds in times.items()}
    return {
        "k": k,
        "queries": query.shape[1] * query.shape[2] * query.shape[0],
        **{f"{name}_ms": seconds * 1e3 for name, seconds in least.items()},
        "share": least["search"] / least["product"],
        "against_topk": least["topk"] / least["search"],
        "seconds": times,
    }


def product(query: Tensor, keys: Tensor) -> None:
    """Multiply all queries with the keys of their group, and keep nothing.

    On the CPU a piece at a time that stays in the cache: scores that go to main memory would make
    it slower than the search. On a GPU in few pieces, each of which is worth a launch.
    """
    tall, wide = (CHUNK, TILE) if query.device.type == "cpu" else (LARGE, LARGE)
    for rows, own in _groups(query, keys):
        scores = rows.new_empty(min(tall, len(rows)) * min(wide, len(own)))
        for chunk in rows.split(tall):
            for tile in own.split(wide):
                out = scores[: len(chunk) * len(tile)].view(len(chunk), len(tile))
                torch.mm(chunk, tile.T, out=out)


def product_and_topk(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best keys of each query, a chunk at a time: indices and scores [B, H, T, k]."""
    index: list[Tensor] = []
    logits: list[Tensor] = []
    k = min(k, keys.shape[2])
    for rows, own in _groups(query, keys):
        scores = rows.new_empty(min(CHUNK, len(rows)), len(own))
        for chunk in rows.split(CHUNK):
            best = torch.mm(chunk, own.T, out=scores[: len(chunk)]).topk(k, 1, sorted=False)
            index.append(best.indices)
            logits.append(best.values)
    shape = (*query.shape[:3], k)
    return torch.cat(index).view(shape), torch.cat(logits).view(shape)


def _groups(query: Tensor, keys: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the queries [R, D] of each row and group, and their keys [M, D]."""
    rows = query.unflatten(1, (keys.shape[1], -1)).flatten(2, 3).flatten(0, 1)
    return list(zip(rows, keys.flatten(0, 1), strict=True))
