import numpy as np
import pytest
import torch
from evaluation.corpora import Listed
from helpers.models import make_memory, make_model

from unimem import attach
from unimem.evaluation.ages import Ages
from unimem.evaluation.score import score
from unimem.memory.state import FREE, Memory


def observer(lengths, **memory):
    torch.manual_seed(3)
    model = attach(make_model(), make_memory(8, **memory))
    ages = Ages(8)
    plain = score(model, Listed(lengths), segment_length=8, batch_size=2)
    watched = score(model, Listed(lengths), segment_length=8, batch_size=2, observer=ages)
    for a, b in zip(plain.nll, watched.nll, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # watched, attention is by the reference
    return ages.record(len(lengths))


def test_uniform_attention_has_the_share_of_its_slots():
    memory = Memory(
        torch.zeros(2, 1, 6, 4), torch.zeros(2, 1, 6, 4), torch.tensor([[*range(6)], [FREE] * 6])
    )
    queries = torch.tensor([[6, 7, FREE], [0, 1, 2]])
    ages = Ages(2)
    ages(4, torch.full((2, 3, 3, 6), 0.1), queries, memory)
    record = ages.record(2)
    # Distances 1..6 of the query at 6, and 2..7 of that at 7; the second row has no memory.
    assert record == {
        "documents": 2,
        "edges": [1, 3, 5, 9],
        "share": {"4": [0.15, 0.2, 0.25]},
        "slots": {"4": [1.5, 2.0, 2.5]},
    }


def test_buckets_of_several_segments_are_joined():
    ages = Ages(2)
    for end, slots in ((2, 2), (4, 4)):
        memory = Memory(
            torch.zeros(1, 1, slots, 4), torch.zeros(1, 1, slots, 4), torch.arange(slots)[None]
        )
        ages(0, torch.full((1, 1, 1, slots), 0.1), torch.tensor([[end]]), memory)
    record = ages.record(1)
    assert record is not None
    assert record["slots"] == {"0": [2.0, 1.0]}
    assert record["share"] == {"0": [0.2, 0.1]}


@pytest.mark.parametrize("positions", ["true", "zero"])
def test_all_of_a_lone_segments_memory_is_counted(positions):
    record = observer([16], positions=positions)
    assert record is not None
    # 8 queries see the 8 slots of the segment before: distances 1 to 15.
    assert record["edges"] == [1, 9, 17]
    assert [sum(slots) for slots in record["slots"].values()] == [8.0] * 3
    for share in record["share"].values():
        assert 0 < sum(share) < 1


def test_a_window_is_read_no_further_than_it_reaches():
    record = observer([40, 23], reading={"position": {"window": 8}})
    assert record is not None
    for share in record["share"].values():
        assert share[0] > 0
        assert share[1:] == [0] * (len(share) - 1)


def test_a_closed_gate_reads_nothing():
    torch.manual_seed(3)
    model = attach(make_model(), make_memory(8, fusion="gated", injection={"layers": [1]}))
    gates = model.memory.gates
    for open_share in (0.0, 1.0):
        with torch.no_grad():
            for gate in gates.parameters():
                gate.fill_(100 * (2 * open_share - 1))
        ages = Ages(8)
        score(model, Listed([24]), segment_length=8, batch_size=1, observer=ages)
        record = ages.record(1)
        assert record is not None
        assert sum(record["share"]["1"]) == pytest.approx(open_share, abs=1e-6)


def test_soft_tokens_in_front_do_not_count():
    choices = {
        "writing": {"direct": {}, "model_forward": {"num_soft_tokens": 3}},
        "injection": {"layers": [1], "input": {}},
        "positions": "zero",
        "bptt_segments": 1,
    }
    record = observer([24, 30], **choices)
    assert record is not None
    assert list(record["share"]) == ["1"]


def test_without_layers_of_memory_there_are_no_ages():
    none = {"management": {"none": {}}, "reading": {"none": {}}, "injection": {"none": {}}}
    assert observer([24], **none) is None
