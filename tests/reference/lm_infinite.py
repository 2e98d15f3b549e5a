"""LM-Infinite (arXiv 2308.16137): the first `num_global` tokens and the last `window` ones, no
distance above `window`."""

from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, num_global, window):
    t, j = places(ids.shape[1])
    seen = (j <= t) & ((j < num_global) | (t - j < window))
    distance = (t - j).clamp(max=window)

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        return soft(scores(model, q, k, distance), seen, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
