"""Whatever the segment length, batch, budgets and resets: rows are documents read alone."""

import torch
from helpers.models import make_memory, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.segments import read, run

MODEL = make_model(layers=2)
READINGS = st.sampled_from(
    [
        {"all": {}},
        {"similarity": {"topk": 3}},
        {"position": {"window": 9, "stride": 2, "num_global": 2}},
        {"similarity": {"topk": 2}, "position": {"window": 5, "num_global": 1}},
    ]
)
SOFT = st.sampled_from([None, 1, 2])


@st.composite
def streams(draw):
    """Rows of documents cut into segments: lengths [rows][documents], segment length, budget."""
    length = draw(st.integers(1, 6))
    rows = draw(
        st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=3), max_size=3, min_size=1)
    )
    return length, rows


def laid_out(length, rows):
    """The rows as segments: ids, starts, lengths, and where each document lies in its row."""
    generator = torch.Generator().manual_seed(sum(map(sum, rows)))
    counts = [sum(-(-n // length) for n in row) for row in rows]
    shape = (len(rows), max(counts))
    ids = torch.zeros(*shape, length, dtype=torch.long)
    starts, lengths = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long)
    documents = []
    for r, row in enumerate(rows):
        s = 0
        for n in row:
            document = torch.randint(0, 61, (n,), generator=generator)
            documents.append((r, s, document))
            for place in range(0, n, length):
                piece = document[place : place + length]
                ids[r, s, : len(piece)] = piece
                starts[r, s], lengths[r, s] = place == 0, len(piece)
                s += 1
    return ids, starts, lengths, documents


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    stream=streams(),
    size=st.integers(1, 15),
    reading=READINGS,
    positions=st.sampled_from(["zero", "true", "capped"]),
    fusion=st.sampled_from(["joint", "gated"]),
    soft=SOFT,
    clear=st.booleans(),
)
def test_rows_are_documents_read_alone(stream, size, reading, positions, fusion, soft, clear):
    length, rows = stream
    choices = {
        "management": {"clear_all": {"size": size + length}} if clear else {"fifo": {"size": size}},
        "reading": reading,
        "positions": positions,
        "fusion": fusion,
    }
    if soft:
        forward = {"num_soft_tokens": 2, "soft_segments": soft}
        choices |= {"writing": {"direct": {}, "model_forward": forward}, "bptt_segments": 1}
        choices["injection"] = {"layers": [1], "input": {}}
    torch.manual_seed(0)
    attach(MODEL, make_memory(length, **choices))
    ids, starts, lengths, documents = laid_out(length, rows)
    with torch.no_grad():
        hidden, bank, _ = run(
            MODEL, MemoryBank.empty(len(rows)), ids, starts=starts, lengths=lengths
        )
        logits = MODEL.lm_head(hidden)
        for row, first, document in documents:
            alone = read(MODEL, document[None])
            count = -(-len(document) // length)
            found = logits[row, first : first + count].flatten(0, 1)[: len(document)]
            scale = alone.logits.abs().max()
            assert (found - alone.logits[0]).abs().max() / scale < 1e-4
            # what ends in padding is never read on, so only whole segments are compared
            if first + count == len(starts[row]) and len(document) % length == 0:
                for layer, memory in alone.bank.layers.items():
                    kept, own = bank.layers[layer].positions[row], memory.positions[0]
                    assert kept[kept >= 0].tolist() == own[own >= 0].tolist()
                    newest = range(max(len(document) - size, 0), len(document))
                    assert clear or own.tolist() == list(newest)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(length=st.integers(1, 9), size=st.integers(9, 20), segments=st.integers(1, 8))
def test_clear_all_holds_whole_segments_since_the_last_overflow(length, size, segments):
    attach(MODEL, make_memory(length, management={"clear_all": {"size": size}}))
    held: list[int] = []
    bank = None
    with torch.no_grad():
        for s in range(segments):
            got = read(MODEL, torch.arange(length)[None], bank=bank)
            bank = got.bank
            new = list(range(s * length, (s + 1) * length))
            held = held + new if len(held) + length <= size else new
            kept = bank.layers[0].positions[0]
            assert kept[kept >= 0].tolist() == held
            assert len(kept) <= size
