"""Memorizing Transformer (arXiv 2203.08913): every query and head reads the `topk` tokens of
greatest logit among the last `size` before its segment, all placed at its start."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, topk, size):
    n = ids.shape[1]
    t, j = places(n)
    start = t // length * length  # of the query's segment
    own = (start <= j) & (j <= t)
    memory = (start - size <= j) & (j < start)

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        near, far = scores(model, q, k, t - j), scores(model, q, k.detach(), t - start)
        best = far.masked_fill(~memory, -torch.inf).topk(min(topk, n)).indices
        picked = memory & torch.zeros_like(far, dtype=torch.bool).scatter(-1, best, True)
        seen = torch.cat([own.expand_as(picked), picked], -1)
        return soft(torch.cat([near, far], -1), seen, torch.cat([v, v.detach()], 2))

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
