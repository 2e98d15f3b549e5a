"""Landmark Attention (arXiv 2305.16300): a landmark token behind each block opens or closes it.

Memory is read as in both released codes: under stingy positions landmarks are scored, the blocks
chosen are laid out one behind the other, and a grouped softmax reads them there.
"""

import torch
from reference.decoder import decode, places, rope, scores, soft


def logits(model, ids, *, length, layers, block, mark, topk):
    """`mark` [E] is the embedding of the landmark; `topk` blocks of earlier segments are read."""
    embed = model.model.embed_tokens
    landmark = mark.expand(len(ids), 1, -1)
    embeds, segments, n = [], [], 0  # a segment is a list of blocks: first token, landmark
    for text in ids.split(length, 1):
        segments.append([])
        for piece in text.split(block, 1):
            embeds += [embed(piece), landmark]
            segments[-1].append((n, n + piece.shape[1]))
            n += piece.shape[1] + 1

    def attention(layer, q, k, v):
        if layer not in layers:
            t, j = places(n)
            first = torch.tensor([s[0][0] for s in segments for _ in range(s[0][0], s[-1][1] + 1)])
            return soft(scores(model, q, k, t - j), (first[:, None] <= j) & (j <= t), v)
        out = []
        for number, own in enumerate(segments):
            past = [span for segment in segments[:number] for span in segment]
            for t in range(own[0][0], own[-1][1] + 1):
                out.append(read(model, q[:, :, t], k, v, t, own, past, block + 1, topk))
        return torch.stack(out, 2)

    predicts_next = [t for s in segments for a, m in s for t in (*range(a, m - 1), m)]
    # A landmark speaks for the last text token of its block.
    return model.lm_head(decode(model, torch.cat(embeds, 1), attention)[:, predicts_next])


def read(model, q, k, v, t, own, past, width, topk):
    """What token t, with query q [B, H, D], reads of the blocks of its segment and of the past."""
    kept, count = min(topk, len(past)), len(past)
    begin = (kept + 1) * width  # the place of the segment: behind kept + 1 places of a block
    place = begin + t - own[0][0]

    def logit(keys, at):
        return (rope(model, q[..., None, :], place - at) * keys).sum(-1) / q.shape[-1] ** 0.5

    # To choose: the kept newest blocks have slots 1, 2, ..., all older ones share slot 0.
    at = torch.tensor([max(0, i - (count - kept) + 1) * width + m - a
                       for i, (a, m) in enumerate(past)])  # fmt: skip
    chosen = torch.zeros(*q.shape[:2], count, dtype=torch.bool)
    if past:
        score = logit(k[:, :, [m for _, m in past]], at)
        chosen = chosen.scatter(-1, score.topk(kept).indices, True)
    # To read: the chosen ones in order, one slot further if they are of the newest.
    slot = chosen.cumsum(-1) - 1 + (torch.arange(count) >= count - kept)

    doors, rooms = [], []
    for i, (a, m) in enumerate(past):
        at = slot[:, :, i, None] * width + torch.arange(m - a + 1)
        inside = logit(k[:, :, a : m + 1], at)
        doors.append(inside[..., -1:].masked_fill(~chosen[:, :, i, None], -torch.inf))
        rooms.append((inside[..., :-1].softmax(-1)[..., None] * v[:, :, a:m]).sum(-2))
    for a, m in own:
        inside = logit(k[:, :, a : m + 1], begin + torch.arange(a, m + 1) - own[0][0])
        if t > m:
            doors.append(inside[..., -1:])
            rooms.append((inside[..., :-1].softmax(-1)[..., None] * v[:, :, a:m]).sum(-2))
        elif t >= a:
            seen = min(t + 1, m) - a
            doors.append(inside[..., :seen])
            rooms += v[:, :, a : a + seen].unbind(2)
    return (torch.cat(doors, -1).softmax(-1)[..., None] * torch.stack(rooms, 2)).sum(2)
