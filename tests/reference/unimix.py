"""UniMix without soft tokens (arXiv 2402.03009): of the last `size` tokens before its segment, a
query reads those in its window, the oldest and the `topk` best others, all placed at its start."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, topk, window, num_global, size):
    n = ids.shape[1]
    t, j = places(n)
    start = t // length * length  # of the query's segment
    oldest = (start - size).clamp(min=0)  # place held in memory
    own = (start <= j) & (j <= t)
    memory = (oldest <= j) & (j < start)
    placed = memory & ((t - j <= window) | (j < oldest + num_global))
    rest = memory & ~placed

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        near, far = scores(model, q, k, t - j), scores(model, q, k, t - start)
        best = far.masked_fill(~rest, -torch.inf).topk(min(topk, n)).indices
        picked = rest & torch.zeros_like(far, dtype=torch.bool).scatter(-1, best, True)
        return soft(torch.where(own, near, far), own | placed | picked, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
