"""A bank that was filled is what reading as many tokens leaves."""

import pytest
import torch

from unimem.bench.bank import filled_bank
from unimem.bench.inputs import Gaussian
from unimem.bench.settings import method_names
from unimem.bench.shapes import SHAPES, configured
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.load import load_model
from unimem.model.segments import run
from unimem.training.footprint import state_bytes_per_row

SHAPE = SHAPES["micro"]
LENGTH, SIZE = 16, 64


def attached_model(method, size=SIZE):
    config = configured(method, SHAPE, size=size, segment_length=LENGTH)
    return attach(load_model(SHAPE.model(), SHAPE.vocabulary, 0), config.memory).eval()


def fill(model, size=SIZE, rows=1):
    return filled_bank(model, Gaussian(), rows=rows, size=size, seed=0)


@pytest.mark.parametrize("method", ["full_context", "memorizing_transformer"])
def test_state_is_keys_values_and_places(method):
    bank = fill(attached_model(method))
    kv_heads, head, layers = 2, 32, {"memorizing_transformer": 1}.get(method, 6)
    assert bank.bytes_per_row() == layers * SIZE * (2 * kv_heads * head * 4 + 8)
    assert bank.position.tolist() == [SIZE]
    assert all(m.positions.tolist() == [list(range(SIZE))] for m in bank.layers.values())


def test_nothing_is_held_at_a_size_of_0():
    assert not fill(attached_model("unimix", size=0), size=0).layers


@pytest.mark.parametrize("method", ["unimix", "landmark"])
def test_state_is_as_large_as_after_reading(method):
    model = attached_model(method, None)
    read = MemoryBank.empty(1)
    for seed in range(SIZE // LENGTH):
        ids = torch.randint(512, (1, 1, LENGTH), generator=torch.Generator().manual_seed(seed))
        starts = torch.zeros(1, 1, dtype=torch.bool)
        with torch.no_grad():
            _, read, _ = run(model, read, ids, starts=starts, lengths=torch.full((1, 1), LENGTH))
    bank = fill(model)
    assert bank.bytes_per_row() == read.bytes_per_row()
    assert bank.position.tolist() == read.position.tolist()
    assert {i: set(m.notes) for i, m in bank.layers.items()} == {
        i: set(m.notes) for i, m in read.layers.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_every_method_takes_a_step_from_a_full_bank(method):
    model = attached_model(method, None if method == "h2o" else SIZE)  # whose recent ones are more
    bank = fill(model, rows=2)
    assert bank.bytes_per_row() == state_bytes_per_row(model, SIZE, torch.float32)
    ids = torch.zeros(2, 1, LENGTH, dtype=torch.long)
    starts, lengths = torch.zeros(2, 1, dtype=torch.bool), torch.full((2, 1), LENGTH)
    hidden, after, _ = run(model, bank, ids, starts=starts, lengths=lengths)
    assert hidden.isfinite().all() and (after.position > bank.position).all()
