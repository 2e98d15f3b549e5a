"""TOVA (arXiv 2401.06104): each layer keeps the tokens that the last query of a segment attends to
most."""

import torch
from reference.decoder import decode, local, places, scores


def logits(model, ids, *, length, layers, size):
    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        t, j = places(q.shape[2])
        logit, out = scores(model, q, k, t - j), []
        held = torch.zeros(ids.shape, dtype=torch.bool)
        for start in range(0, len(t), length):
            end = start + length
            mask = held[:, None, None] | ((start <= j) & (j <= t))[start:end]
            weight = logit[:, :, start:end].masked_fill(~mask, -torch.inf).softmax(-1)
            out.append(weight @ v)
            held = held | ((start <= j) & (j < end))
            rank = weight[:, :, -1].mean(1).masked_fill(~held, -torch.inf)
            best = rank.topk(min(size, len(t))).indices
            held = held & torch.zeros_like(held).scatter(-1, best, True)
        return torch.cat(out, 2)

    return model.lm_head(decode(model, model.get_input_embeddings()(ids), attention))
