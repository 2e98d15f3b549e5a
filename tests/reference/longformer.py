"""Longformer, causal (arXiv 2004.05150): a dilated window and the first `num_global` tokens."""

from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, window, stride, num_global):
    t, j = places(ids.shape[1])
    sliding = (t - j <= window) & ((t - j) % stride == 0)
    seen = (j <= t) & (sliding | (j < num_global))

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        return soft(scores(model, q, k, t - j), seen, v)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
