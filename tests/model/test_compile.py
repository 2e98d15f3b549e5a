"""torch.compile of the decoder: one graph with memory in it, and the same numbers."""

import pytest
import torch
from helpers.models import make_memory, make_model, tokens
from torch import _dynamo as dynamo

from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.segments import run

READINGS = {
    "search and window": {
        "similarity": {"topk": 3},
        "position": {"window": 6, "num_global": 2, "grad_global": False},
    },
    "all": {"all": {}},
}
SEGMENTS, LENGTH = 8, 8


def read_all(model, train):
    """Every segment by a call of its own, so that memory grows, then stays full."""
    bank, hidden = MemoryBank.empty(2), []
    starts, lengths = torch.zeros(2, 1, dtype=torch.bool), torch.full((2, 1), LENGTH)
    for segment in tokens(2, SEGMENTS * LENGTH).split(LENGTH, 1):
        with torch.set_grad_enabled(train):
            out, bank, _ = run(
                model, bank.detach(), segment[:, None], starts=starts, lengths=lengths
            )
        if train:
            out.square().sum().backward()
        hidden.append(out.detach())
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return torch.cat(hidden, 1), grads


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # while it traces, torch warns of its own ways
@pytest.mark.parametrize("train", [False, True], ids=["read", "train"])
@pytest.mark.parametrize("reading", READINGS)
def test_decoder_is_one_graph_and_compiled_a_few_times(reading, train):
    memory = make_memory(
        LENGTH,
        management={"fifo": {"size": 40}},
        reading=READINGS[reading],
        positions="zero",
        injection={"layers": [1]},
    )
    model = attach(make_model(layers=2), memory).train(train)
    expected = read_all(model, train)
    dynamo.reset()
    dynamo.utils.counters.clear()
    model.model.compile(backend="aot_eager", fullgraph=True)
    hidden, grads = read_all(model, train)
    torch.testing.assert_close(hidden, expected[0], rtol=1e-5, atol=1e-5)
    assert grads.keys() == expected[1].keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[1][name], rtol=1e-4, atol=1e-5)
    assert not dynamo.utils.counters["graph_break"]
    # the first segment has no memory; then sizes are found to vary; at last memory is full
    assert dynamo.utils.counters["stats"]["unique_graphs"] <= 6
