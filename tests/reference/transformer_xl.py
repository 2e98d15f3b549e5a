"""Transformer-XL (arXiv 1901.02860): a query reads, of the last `size` tokens before its segment,
those in its window, all placed at its start."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, window, size):
    t, j = places(ids.shape[1])
    start = t // length * length  # of the query's segment
    own = (start <= j) & (j <= t)
    memory = (start - size <= j) & (j < start) & (t - j <= window)

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        near, far = scores(model, q, k, t - j), scores(model, q, k, t - start)
        return soft(torch.where(own, near, far), own | memory, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
