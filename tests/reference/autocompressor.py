"""AutoCompressors (arXiv 2305.14788): each segment is read after the summaries of all before it."""

import torch
from reference.decoder import decode, local


def logits(model, ids, *, length, layers, num_soft_tokens, learned):
    """`learned` [num_soft_tokens, E] asks for a summary; the method is the same in every layer."""

    def causal(layer, q, k, v):
        return local(model, q, k, v, length=q.shape[2])

    ask = learned.expand(len(ids), -1, -1)
    summaries, outputs = ask[:, :0], []
    for text in ids.split(length, 1):
        parts = [summaries, model.model.embed_tokens(text), ask]
        hidden = decode(model, torch.cat(parts, 1), causal)
        _, output, summary = hidden.split([part.shape[1] for part in parts], 1)
        summaries = torch.cat([summaries, summary], 1)
        outputs.append(output)
    return model.lm_head(torch.cat(outputs, 1))
