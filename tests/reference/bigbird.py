"""BigBird, causal (arXiv 2007.14062): a window of blocks, two global blocks and random ones."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, block, random_blocks, seed):
    t, j = places(ids.shape[1])
    blocks = -(-ids.shape[1] // block)  # the last may be shorter

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        heads = range(q.shape[1])
        linked = [block_links(blocks, random_blocks, seed, layer, head) for head in heads]
        seen = (j <= t) & torch.tensor(linked)[:, t // block, j // block]
        return soft(scores(model, q, k, t - j), seen, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))


def block_links(blocks, random_blocks, seed, layer, head):
    """Whether queries of block a (row) see keys of block c (column), causality aside."""
    rows = []
    for a in range(blocks):
        others = [(mix(seed, layer, head, a, c), c) for c in range(2, a - 2)]
        drawn = [c for _, c in sorted(others)[:random_blocks]]
        rows.append([a - c <= 2 or c < 2 or c in drawn for c in range(blocks)])
    return rows


def mix(seed, *parts):
    """A pseudo-random integer that depends on nothing but the integers given."""
    x = seed
    for part in parts:
        x = (x + (part + 1) * 2654435761) % 2**31
        for _ in range(2):
            x = ((x >> 16) ^ x) * 73244475 % 2**31
        x = (x >> 16) ^ x
    return x
