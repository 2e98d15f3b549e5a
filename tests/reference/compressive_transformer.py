"""Compressive Transformer (arXiv 1911.05507): old tokens are pooled in groups, not dropped."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, size, compressed_size, rate, pool):
    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        n = q.shape[2]
        t, j = places(n)
        group = places(n // rate)[1]  # group i holds tokens i * rate .. i * rate + rate - 1
        start = t - t % length  # of the segment that reads
        groups = (start - size).clamp(min=0) // rate  # whose tokens all are older than the newest

        token_seen = (j <= t) & (j >= groups * rate)
        group_seen = (group < groups) & (group >= groups - compressed_size)
        distance = torch.cat([t - j, t - (group * rate + rate - 1)], 1)
        return soft(
            scores(model, q, torch.cat([k, pooled(k, rate, pool)], 2), distance),
            torch.cat([token_seen, group_seen], 1),
            torch.cat([v, pooled(v, rate, pool)], 2),
        )

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))


def pooled(x, rate, pool):
    """One slot [B, H, N // rate, D] for every whole group of x [B, H, N, D]."""
    count = x.shape[2] // rate
    groups = x[:, :, : count * rate].unflatten(2, (count, rate))
    return groups.mean(3) if pool == "mean" else groups.amax(3)
