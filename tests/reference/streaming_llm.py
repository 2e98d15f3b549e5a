"""StreamingLLM (arXiv 2309.17453): a cache of the first `num_pinned` tokens and the last `window`
ones, with positions counted in the cache."""

import torch
from reference.decoder import decode, local, rope


def logits(model, ids, *, length, layers, num_pinned, window):
    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        outputs = []
        for t in range(q.shape[2]):
            cache = [j for j in range(t + 1) if j < num_pinned or t - j < window]
            index = torch.arange(len(cache))
            key = rope(model, k[:, :, cache], index)
            query = rope(model, q[:, :, [t]], index[-1:])
            weights = (query @ key.mT / q.shape[-1] ** 0.5).softmax(-1)
            outputs.append(weights @ v[:, :, cache])
        return torch.cat(outputs, 2)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))
