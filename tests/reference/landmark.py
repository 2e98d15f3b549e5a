"""Landmark Attention (arXiv 2305.16300): a landmark token behind each block opens or closes it."""

import torch
from reference.decoder import decode, places, scores, soft


def logits(model, ids, *, length, layers, block, mark, topk):
    """`mark` [E] is the embedding of the landmark; `topk` blocks of earlier segments are read."""
    embed = model.model.embed_tokens
    pieces = [  # (segment, its text) for every block
        (number, piece)
        for number, segment in enumerate(ids.split(length, 1))
        for piece in segment.split(block, 1)
    ]
    landmark = mark.expand(len(ids), 1, -1)
    embeds = torch.cat([x for _, text in pieces for x in (embed(text), landmark)], 1)

    # A row for each token of the sequence: block, segment, place in the block, is it a landmark?
    of_block, segment, offset, is_mark = torch.tensor(
        [
            (number, seg, place, place == text.shape[1])
            for number, (seg, text) in enumerate(pieces)
            for place in range(text.shape[1] + 1)
        ]
    ).T.contiguous()
    is_mark = is_mark.bool()
    marks = is_mark.nonzero()[:, 0]  # the place of each block's landmark
    text_of = (of_block == of_block[marks, None]) & ~is_mark  # [blocks, N]
    first = torch.searchsorted(segment, segment)  # the place where a token's segment starts

    t, j = places(len(segment))
    same_segment = segment[:, None] == segment
    own_text = (of_block[:, None] == of_block) & (j <= t) & ~is_mark  # [N, N]
    earlier = same_segment[:, marks] & (of_block[marks] < of_block[:, None])  # [N, blocks]
    memory = segment[marks] < segment[:, None]  # [N, blocks]

    # The newest topk blocks of the memory keep their order, and all older ones share slot 0.
    age = of_block[first][:, None] - of_block  # 1 for the newest block of the memory
    slot = (topk + 1 - age).clamp(min=0)
    stingy = ((topk + 1) * (block + 1) + t - first[:, None]) - (slot * (block + 1) + offset)
    distance = torch.where(same_segment, t - j, stingy)

    def attention(layer, q, k, v):
        if layer not in layers:
            return soft(scores(model, q, k, t - j), same_segment & (j <= t), v)
        logit = scores(model, q, k, distance)
        gate = logit[..., marks]  # in layer 0 the landmarks of slot 0 are all alike, and so tie
        picks = gate.masked_fill(~memory, -torch.inf).topk(min(topk, len(marks))).indices
        picked = torch.zeros_like(gate, dtype=torch.bool).scatter(-1, picks, True) & memory

        own = logit.masked_fill(~own_text, -torch.inf)
        opened = gate.masked_fill(~(earlier | picked), -torch.inf)
        own, opened = torch.cat([own, opened], -1).softmax(-1).split([len(segment), len(marks)], -1)
        inside = logit[..., None, :].masked_fill(~text_of, -torch.inf).softmax(-1)
        return (own + (opened[..., None] * inside).sum(-2)) @ v  # inside: [B, H, N, blocks, N]

    # A landmark speaks for the last text token of its block.
    return model.lm_head(decode(model, embeds, attention)[:, ~is_mark.roll(-1)])
