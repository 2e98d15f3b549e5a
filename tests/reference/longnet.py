"""LongNet (arXiv 2307.02486): dilated attention in groups of (width, dilation), each weighted by
its sum of exponentials."""

import torch
from reference.decoder import decode, local, places, scores


def logits(model, ids, *, length, layers, pairs):
    t, j = places(ids.shape[1])

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        raw = scores(model, q, k, t - j)
        head = torch.arange(q.shape[1])[:, None, None]
        outputs, sums = [], []
        for width, dilation in pairs:
            offset = head % dilation
            linked = (
                (j <= t)
                & (t // width == j // width)
                & (t % width % dilation == offset)  # counted from the start of the group
                & (j % width % dilation == offset)
            )
            group = raw.masked_fill(~linked, -torch.inf)
            outputs.append(group.softmax(-1).nan_to_num() @ v)  # 0 for a query without keys
            sums.append(group.logsumexp(-1, keepdim=True))  # -inf for a query without keys
        return (torch.stack(sums).softmax(0) * torch.stack(outputs)).sum(0)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
