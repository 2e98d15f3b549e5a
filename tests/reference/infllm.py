"""InfLLM (arXiv 2402.04617): beside the first tokens and a window, a segment reads the past blocks
whose representative tokens its queries score highest, and the remainder that is in no block yet."""

import torch
from reference.decoder import decode, local, places, scores


def logits(model, ids, *, length, layers, num_global, window, block, topk, num_representatives):
    """`window` is at least `length`, so that a query sees its own segment."""

    def cut(row, first, end):
        return [(a, a + block) for a in range(first, end - block + 1, block)]

    return read(model, ids, cut, length, layers, num_global, window, topk, num_representatives)


def read(model, ids, cut, length, layers, num_global, window, topk, representatives, near=0):
    """`cut(row, first, end)` lists the blocks (begin, end) of a row that are complete between two
    places; a chosen one brings `near` on each side.

    As in the released code, blocks are cut of what lies behind the window of the segment's first
    query, from the end of the initial tokens on. What is in no block is read: initial tokens,
    remainder, window. Every head has its own representatives, and all of them choose together.
    """

    def attention(layer, q, k, v):
        if layer not in layers:
            return local(model, q, k, v, length)
        t, j = places(q.shape[2])
        distance = (t - j).clamp(max=window)
        home = q.new_zeros(q.shape[:3])  # attention that a token received from its own segment
        out = []
        for start in range(0, len(t), length):
            now = slice(start, start + length)
            mean = q[:, :, now].mean(2, keepdim=True)
            rank = scores(model, mean, k, torch.tensor([[window]]))[:, :, 0]  # [B, H, N]
            skipped = torch.zeros(ids.shape, dtype=torch.bool)
            for row, tokens in enumerate(skipped):
                blocks = cut(row, num_global, start - window)
                scored = [strength(rank[row], home[row], *b, representatives) for b in blocks]
                best = sorted(range(len(blocks)), key=scored.__getitem__, reverse=True)[:topk]
                for i, (a, b) in enumerate(blocks):
                    tokens[a:b] = all(abs(i - chosen) > near for chosen in best)
            seen = (j <= t[now]) & ~skipped[:, None, None]  # [B, 1, T, N]
            # a search passes no gradient on, to what it finds nor to the remainder
            fixed = (t[now] - j > window) & (j >= num_global)
            logit, constant = (
                scores(model, q[:, :, now], x, distance[now]) for x in (k, k.detach())
            )
            weight = constant.where(fixed, logit).where(seen, -torch.inf).softmax(-1)
            home[:, :, now] = weight.detach().sum(2)[:, :, now]
            out.append(weight * ~fixed @ v + weight * fixed @ v.detach())
        return torch.cat(out, 2)

    return model.lm_head(decode(model, model.get_input_embeddings()(ids), attention))


def strength(rank, home, begin, end, representatives):
    """How well the block from `begin` to `end` matches, by the ranks [H, N] of what stands for it
    in each head: its tokens with the most attention `home` [H, N]."""
    best = home[:, begin:end].argsort(-1, descending=True)[:, :representatives]
    return rank[:, begin:end].gather(1, best).mean(1).sum()
