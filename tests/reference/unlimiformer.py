"""Unlimiformer (arXiv 2305.01625): every query and head reads the `topk` tokens of greatest logit
among all earlier segments."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, topk):
    n = ids.shape[1]
    t, j = places(n)
    own = (j <= t) & (j // length == t // length)
    memory = j // length < t // length

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        near, far = scores(model, q, k, t - j), scores(model, q, k.detach(), t - j)
        best = far.masked_fill(~memory, -torch.inf).topk(min(topk, n)).indices
        picked = memory & torch.zeros_like(far, dtype=torch.bool).scatter(-1, best, True)
        seen = torch.cat([own.expand_as(picked), picked], -1)
        return soft(torch.cat([near, far], -1), seen, torch.cat([v, v.detach()], 2))

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
