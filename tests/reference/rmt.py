"""Recurrent Memory Transformer (arXiv 2207.06881): tokens carry the state between segments."""

import torch
from reference.decoder import decode, local


def logits(model, ids, *, length, layers, num_soft_tokens, learned):
    """`learned` [num_soft_tokens, E] is the first state; the method is the same in every layer."""

    def causal(layer, q, k, v):
        return local(model, q, k, v, length=q.shape[2])

    state, outputs = learned.expand(len(ids), -1, -1), []
    for text in ids.split(length, 1):
        parts = [state, model.model.embed_tokens(text), state]  # one to read, one to write
        hidden = decode(model, torch.cat(parts, 1), causal)
        _, output, state = hidden.split([part.shape[1] for part in parts], 1)
        outputs.append(output)
    return model.lm_head(torch.cat(outputs, 1))
