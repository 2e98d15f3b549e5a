"""Extended Mind Transformer (arXiv 2406.02332): every query and head reads the `topk` tokens of
greatest cosine before its segment, of those that reach the threshold, all placed at its start.

As in the released code for LLaMA the cosine is of the query as it attends, rotated to its place,
and of the key that was kept before rotation."""

import torch
from reference.decoder import decode, local, places, rope, scores, soft


def logits(model, ids, *, length, layers, topk, threshold):
    n = ids.shape[1]
    t, j = places(n)
    start = t // length * length  # of the query's segment
    own = (start <= j) & (j <= t)
    memory = j < start

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        near, far = scores(model, q, k, t - j), scores(model, q, k.detach(), t - start)
        rotated = rope(model, q, torch.arange(n) % length)
        cosine = torch.cosine_similarity(rotated[..., :, None, :], k[..., None, :, :], dim=-1)
        best = cosine.masked_fill(~memory, -torch.inf).topk(min(topk, n)).indices
        picked = torch.zeros_like(far, dtype=torch.bool).scatter(-1, best, True)
        picked = picked & memory & (cosine >= threshold)
        seen = torch.cat([own.expand_as(picked), picked], -1)
        return soft(torch.cat([near, far], -1), seen, torch.cat([v, v.detach()], 2))

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
