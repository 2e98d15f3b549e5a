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

    def cut(row, first, end):
        begins = [first, *(t for t in events(surprise[row], surprise_window, gamma) if t > first)]
        return [(a, b) for a, b in zip(begins, begins[1:], strict=False) if b <= end]

    for end in range(length, ids.shape[1] + length, length):
        text = ids[:, :end]
        out = read(model, text, cut, *choices)
        nll = torch.nn.functional.cross_entropy(out[:, :-1].mT, text[:, 1:], reduction="none")
        surprise[:, 1:end] = nll.detach()
    return out


def events(surprise, window, gamma):
    """The tokens at which an event begins; the surprise [N] of the first is not counted."""
    found = []
    for i, now in enumerate(surprise):
        past = surprise[max(1, i - window) : i]
        if len(past) > 1 and bool(now > past.mean() + gamma * past.std(correction=0)):
            found.append(i)
    return found
