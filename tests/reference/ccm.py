"""Compressed Context Memory (arXiv 2312.03414): a segment sees the summary tokens of all before."""

import torch
from reference.decoder import decode, places, scores, soft


def logits(model, ids, *, length, layers, num_summary, learned):
    """`learned` [num_summary, E] are the embeddings of the summary tokens."""
    summary = learned.expand(len(ids), -1, -1)
    texts = [model.model.embed_tokens(text) for text in ids.split(length, 1)]
    embeds = torch.cat([x for text in texts for x in (text, summary)], 1)
    is_summary = torch.cat(
        [torch.arange(text.shape[1] + num_summary) >= text.shape[1] for text in texts]
    )

    t, j = places(embeds.shape[1])
    segment = j[0] // (length + num_summary)  # only the last one may be shorter
    own = (segment == segment[:, None]) & (j <= t)
    from_memory = is_summary & (segment < segment[:, None])

    def attention(layer, q, k, v):
        seen = own | from_memory if layer in layers else own
        return soft(scores(model, q, k, t - j), seen, v)

    return model.lm_head(decode(model, embeds, attention)[:, ~is_summary])
