"""LongMem (arXiv 2306.07174): the best blocks of the memory, mixed with the segment by a gate."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, block, topk, gate):
    def attention(layer, q, k, v):
        own = local(model, q, k, v, length)
        if layer not in layers:
            return own
        # The first segment has no memory, and nothing goes back into the memory's keys and values.
        memory = read(model, q[:, :, length:], k.detach(), v.detach(), length, block, topk)
        g = gate[layer].sigmoid()[:, None, None]
        mixed = g * memory + (1 - g) * own[:, :, length:]
        return torch.cat([own[:, :, :length], mixed], 2)

    return model.lm_head(decode(model, model.model.embed_tokens(ids), attention))


def read(model, q, k, v, length, block, topk):
    """What q, the queries from the second segment on, read in the blocks they pick."""
    t, j = places(k.shape[2])
    t = t[length:]
    past = j < t - t % length
    logit = scores(model, q, k, t % length)  # [B, H, N - length, N]

    blocks = -(-k.shape[2] // block)
    block_of = torch.nn.functional.one_hot(j[0] // block, blocks).float()  # [N, blocks]
    count = past.float() @ block_of  # the tokens of each block that are in the memory
    mean = logit.masked_fill(~past, 0) @ block_of / count
    picks = mean.masked_fill(count == 0, -torch.inf).topk(min(topk, blocks)).indices
    picked = torch.zeros_like(mean, dtype=torch.bool).scatter(-1, picks, True)
    return soft(logit, past & picked[..., j[0] // block], v)
