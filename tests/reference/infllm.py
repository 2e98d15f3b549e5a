"""InfLLM (arXiv 2402.04617): beside the first tokens and a window, a segment reads the past blocks
whose representative tokens its queries score highest."""

import torch
from reference.decoder import decode, local, places, scores


def logits(model, ids, *, length, layers, num_global, window, block, topk, num_representatives):
    """`window` is at least `length`, so that a query sees its own segment."""
    blocks = (torch.arange(ids.shape[1]) // block).expand(ids.shape)
    return read(model, ids, blocks, length, layers, num_global, window, topk, num_representatives)


def read(model, ids, blocks, length, layers, num_global, window, topk, representatives, near=0):
    """Token j of row i lies in block blocks[i, j]; a chosen block brings `near` on each side."""

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        t, j = places(q.shape[2])
        distance = (t - j).clamp(max=window)
        mask = (j <= t) & ((j < num_global) | (t - j <= window))
        out, received = [], q.new_zeros(ids.shape)  # attention received from the own segment
        for start in range(0, len(t), length):
            now = slice(start, start + length)
            rank = scores(model, q[:, :, now], k, distance[now]).mean((1, 2))
            seen = (j[0] < num_global) | (j[0] >= start - window)  # by a query of the segment
            rows = zip(rank, received, blocks, strict=True)
            picked = torch.stack([pick(*row, seen, topk, representatives, near) for row in rows])
            keys, values = (x.where(~picked[:, None, :, None], x.detach()) for x in (k, v))
            logit = scores(model, q[:, :, now], keys, distance[now])
            weight = logit.where(mask[now] | picked[:, None, None], -torch.inf).softmax(-1)
            received[:, now] = weight.detach().sum((1, 2))[:, now]
            out.append(weight @ values)
        return torch.cat(out, 2)

    return model.lm_head(decode(model, model.get_input_embeddings()(ids), attention))


def pick(rank, received, blocks, seen, topk, representatives, near):
    """The tokens [N] of one row in the chosen blocks, which are blocks without a seen token."""
    free, score = sorted(set(blocks.tolist()) - set(blocks[seen].tolist())), {}
    for block in free:
        inside = (blocks == block).nonzero()[:, 0]
        best = received[inside].argsort(descending=True)[:representatives]
        score[block] = rank[inside[best]].mean()
    chosen = sorted(free, key=score.__getitem__, reverse=True)[:topk]
    brought = [b for b in free if any(abs(b - c) <= near for c in chosen)]
    return torch.isin(blocks, torch.tensor(brought, dtype=blocks.dtype))
