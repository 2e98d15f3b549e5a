"""Full context (arXiv 1706.03762): plain causal attention over the whole document."""

from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers):
    t, j = places(ids.shape[1])

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        return soft(scores(model, q, k, t - j), j <= t, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
