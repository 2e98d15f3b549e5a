"""Sparse Transformer, fixed (arXiv 1904.10509): the query's own block of `period` tokens and the
last `columns` tokens of every block before."""

from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, period, columns):
    t, j = places(ids.shape[1])
    same_block = j // period == t // period
    summary = j % period >= period - columns
    seen = (j <= t) & (same_block | summary)

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        return soft(scores(model, q, k, t - j), seen, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
