"""Focused Transformer in training (arXiv 2307.03170): a row reads all earlier segments of its own
document and of the next `crossbatch` rows, all placed at the start of the query's segment."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, crossbatch):
    t, j = places(ids.shape[1])
    start = t // length * length  # of the query's segment
    own = (start <= j) & (j <= t)
    memory = j < start

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        raw, seen, values = [scores(model, q, k, t - j)], [own], [v]
        for row in range(crossbatch + 1):  # the row itself, then the rows after it
            raw.append(scores(model, q, k.roll(-row, 0), t - start))
            seen.append(memory)
            values.append(v.roll(-row, 0))
        return soft(torch.cat(raw, -1), torch.cat(seen, -1), torch.cat(values, 2))

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
