"""Infini-attention (arXiv 2404.07143): a gate mixes attention on the own segment with linear
attention on all earlier segments."""

import torch
from reference.decoder import decode, local, places


def logits(model, ids, *, length, layers, gate, delta):
    """`gate[layer]` [H] is pre-sigmoid; `delta` stores only what a value adds to the memory."""

    def attention(layer, q, k, v):
        own = local(model, q, k, v, length)
        if layer not in layers:
            return own
        recall = recurrence if delta else linear_attention
        memory = recall(feature(q), feature(k), v, length)
        t, _ = places(q.shape[2])
        g = torch.sigmoid(gate[layer])[:, None, None] * (t >= length)
        return g * memory + (1 - g) * own

    return model.lm_head(decode(model, model.get_input_embeddings()(ids), attention))


def feature(x):
    return torch.nn.functional.elu(x) + 1


def linear_attention(q, k, v, length):
    """Every query weighs every token of earlier segments by the product of their features."""
    t, j = places(q.shape[2])
    weight = (q @ k.mT) * (j // length < t // length)
    return ratio(weight @ v, weight.sum(-1, keepdim=True))


def recurrence(q, k, v, length):
    """The matrix M [D, D] and the norm z [D, 1], read before each segment and grown after it."""
    size = q.shape[-1]
    M, z, out = q.new_zeros(size, size), q.new_zeros(size, 1), []
    for a, b, c in zip(*(x.split(length, 2) for x in (q, k, v)), strict=True):
        out.append(ratio(a @ M, a @ z))
        M = M + b.mT @ (c - ratio(b @ M, b @ z))
        z = z + b.sum(2)[..., None]
    return torch.cat(out, 2)


def ratio(top, bottom):
    """top / bottom, 0 where nothing is stored yet."""
    return top / bottom.where(bottom > 0, 1)
