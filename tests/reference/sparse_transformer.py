"""Sparse Transformer, strided (arXiv 1904.10509): the last `period` tokens and, before them, every
`period`-th one."""

from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, period):
    t, j = places(ids.shape[1])
    near = t - j < period
    strided = (t - j) % period == 0
    seen = (j <= t) & (near | strided)

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        return soft(scores(model, q, k, t - j), seen, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
