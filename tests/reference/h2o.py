"""H2O (arXiv 2306.14048): each key-value head keeps the newest tokens and, of the others, those
that have received the most attention so far."""

import torch
from reference.decoder import decode, local, places, scores


def logits(model, ids, *, length, layers, size, recent):
    groups = model.config.num_key_value_heads

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        t, j = places(q.shape[2])
        logit, out = scores(model, q, k, t - j), []
        received = q.new_zeros(len(ids), groups, len(t))
        held = torch.zeros_like(received, dtype=torch.bool)
        for start in range(0, len(t), length):
            end = start + length
            memory = held.repeat_interleave(q.shape[1] // groups, 1)[:, :, None]
            mask = memory | ((start <= j) & (j <= t))[start:end]
            weight = logit[:, :, start:end].masked_fill(~mask, -torch.inf).softmax(-1)
            out.append(weight @ v)
            received = received + weight.detach().sum(2).unflatten(1, (groups, -1)).sum(2)
            held = held | ((start <= j) & (j < end))
            rank = received.masked_fill(j >= end - recent, torch.inf)
            held = largest(rank, held, size)
        return torch.cat(out, 2)

    return model.lm_head(decode(model, model.get_input_embeddings()(ids), attention))


def largest(rank, held, size):
    """The mask of those `size` of the held tokens whose rank is greatest, or of all if fewer."""
    best = rank.masked_fill(~held, -torch.inf).topk(min(size, rank.shape[-1])).indices
    return held & torch.zeros_like(held).scatter(-1, best, True)
