"""EM-LLM (arXiv 2407.09450): InfLLM whose blocks are events, which begin at tokens that surprise
the model and come with their neighbours."""

import torch
from reference.infllm import read


def logits(
    model,
    ids,
    *,
    length,
    layers,
    num_global,
    window,
    topk,
    num_representatives,
    neighbours,
    surprise_window,
    gamma,
):
    """`window` is at least `length`; the document is read anew with each segment it grows by."""
    choices = length, layers, num_global, window, topk, num_representatives, neighbours
    surprise = torch.full(ids.shape, -torch.inf)  # a token not yet read begins no event
    for end in range(length, ids.shape[1] + length, length):
        text = ids[:, :end]
        blocks = torch.stack([events(row[1:end], surprise_window, gamma) for row in surprise])
        out = read(model, text, blocks, *choices)
        nll = torch.nn.functional.cross_entropy(out[:, :-1].mT, text[:, 1:], reduction="none")
        surprise[:, 1:end] = nll.detach()
    return out


def events(surprise, window, gamma):
    """The event [N] of each token, given the surprise [N - 1] of the tokens after the first."""
    begins = [True]
    for i, now in enumerate(surprise):
        past = surprise[max(0, i - window) : i]
        begins.append(len(past) > 1 and bool(now > past.mean() + gamma * past.std(correction=0)))
    return torch.tensor(begins).cumsum(0) - 1
