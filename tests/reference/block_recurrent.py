"""Block-recurrent transformer (arXiv 2203.07852): a gate mixes attention on the own segment with
attention on the summary tokens that end the segment before."""

import torch
from reference.decoder import decode, local, places, scores, soft


def logits(model, ids, *, length, layers, num_summary, learned, gate):
    """`learned` [num_summary, E] embeds the summary tokens; `gate[layer]` [H] is pre-sigmoid."""
    width = length + num_summary  # a segment of the sequence: its text, then its summary tokens

    def attention(layer, q, k, v):
        own = local(model, q, k, v, width)
        if layer not in layers:
            return own
        t, j = places(q.shape[2])
        summary = (j // width == t // width - 1) & (j % width >= length)
        # The first segment has no summary to read: its gate is 0.
        late = slice(width, None)
        memory = soft(scores(model, q[:, :, late], k, (t - j)[late]), summary[late], v)
        g = torch.sigmoid(gate[layer])[:, None, None]
        return torch.cat([own[:, :, :width], g * memory + (1 - g) * own[:, :, late]], 2)

    text = model.get_input_embeddings()(ids)
    summaries = learned.expand(len(ids), -1, -1)
    pieces = [torch.cat([part, summaries], 1) for part in text.split(length, 1)]
    hidden = decode(model, torch.cat(pieces, 1), attention)
    t = torch.arange(ids.shape[1])
    return model.lm_head(hidden[:, t // length * width + t % length])
