"""What is said of a model before it reads is what is found when it has read."""

import pytest
import torch
from helpers.models import make_memory, make_model, tokens

from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.segments import run
from unimem.training.footprint import num_parameters, state_bytes_per_row

SOFT = {"model_forward": {"num_soft_tokens": 3, "soft_segments": 2, "seed_read": True}}
NONE = {"management": {"none": {}}, "reading": {"none": {}}, "positions": "zero"}
CASES = {
    "unbounded": {},
    "fifo": {"management": {"fifo": {"size": 12}}},
    "budgets": {"management": {"fifo": {"size": [4, 12]}}, "injection": {"layers": [0, 2]}},
    "clear_all": {"management": {"clear_all": {"size": 20}}, "injection": {"layers": [1]}},
    "none": {**NONE, "injection": {"none": {}}},
    "soft": {"writing": SOFT, "injection": {"input": {}}, **NONE, "bptt_segments": 1},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [5, 8, 43])
def test_state_is_the_most_that_the_bank_holds(name, length):
    model = attach(make_model(), make_memory(**CASES[name])).eval()
    most, bank = 0, MemoryBank.empty(1)
    with torch.no_grad():
        for start in range(0, length, 8):
            _, bank, _ = run(
                model,
                bank,
                tokens(1, min(8, length))[:, None],
                starts=torch.tensor([[start == 0]]),
                lengths=torch.tensor([[min(8, length - start)]]),
            )
            most = max(most, bank.bytes_per_row())
    assert state_bytes_per_row(model, length, torch.float32) == most


def test_tied_weights_count_once_and_memory_counts():
    model = make_model()
    plain = sum(p.numel() for p in model.parameters())
    attach(model, make_memory(fusion="gated"))
    assert num_parameters(model) == plain + 3 * 4
