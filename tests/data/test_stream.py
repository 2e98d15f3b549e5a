import io
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unimem.data.stream import NO_TARGET, SegmentStream


class Listed:
    """Documents whose tokens are all different, from 1 on."""

    def __init__(self, lengths):
        ends = np.cumsum([0, *lengths]) + 1
        self.all = [np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)]

    def __len__(self):
        return len(self.all)

    def ids(self, i):
        return self.all[i]

    def length(self, i):
        return len(self.all[i])

    def name(self, i):
        return f"document-{i}"


lengths = st.lists(st.integers(2, 30), min_size=1, max_size=12)
sizes = {
    "batch_size": st.integers(1, 5),
    "segment_length": st.integers(1, 8),
    "segments_per_step": st.integers(1, 4),
    "seed": st.integers(0, 2**32),
    "shuffle": st.booleans(),
}
options = st.fixed_dictionaries(sizes)


def equal(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert torch.equal(x, y), name


@given(lengths, options)
def test_one_pass_reads_every_token_once(lengths, options):
    stream = SegmentStream(documents := Listed(lengths), steps=None, **options)
    batches = list(stream)
    assert len(batches) == len(stream)
    for batch in batches:  # no padding that no row needs
        S, T = batch.input_ids.shape[1:]
        assert T == batch.lengths.max() <= options["segment_length"]
        assert (batch.lengths > 0).any(0).all() and options["segments_per_step"] >= S
    real = [torch.arange(b.input_ids.shape[2]) < b.lengths[..., None] for b in batches]
    read = torch.cat([b.input_ids[mask] for b, mask in zip(batches, real, strict=True)])
    assert sorted(read.tolist()) == np.concatenate(documents.all).tolist()
    for batch, mask in zip(batches, real, strict=True):
        assert not batch.input_ids[~mask].any()
        assert (batch.targets[~mask] == NO_TARGET).all()
    scored = sum(int((batch.targets != NO_TARGET).sum()) for batch in batches)
    assert scored == sum(lengths) - len(lengths)


@given(lengths, options)
def test_segments_say_where_they_come_from(lengths, options):
    documents = Listed(lengths)
    begun = []
    followed: dict[int, tuple[int, int]] = {}
    for batch in SegmentStream(documents, steps=None, **options):
        B, S, T = *batch.input_ids.shape[:2], options["segment_length"]
        for s in range(S):
            for b in range(B):
                document, offset = int(batch.documents[b, s]), int(batch.offsets[b, s])
                if document < 0:
                    assert batch.lengths[b, s] == 0 and batch.starts[b, s]
                    continue
                ids = documents.ids(document)
                n = min(T, len(ids) - offset)
                assert batch.lengths[b, s] == n
                assert batch.input_ids[b, s, :n].tolist() == ids[offset : offset + n].tolist()
                targets = [*ids[offset + 1 :].tolist(), NO_TARGET][:n]
                assert batch.targets[b, s, :n].tolist() == targets
                assert bool(batch.starts[b, s]) == (offset == 0)
                if offset == 0:
                    begun.append(document)
                else:
                    assert followed[b] == (document, offset)
                followed[b] = (document, offset + T)
    assert sorted(begun) == list(range(len(lengths)))
    if not options["shuffle"]:
        assert begun == sorted(begun)


def test_a_row_takes_the_next_document_inside_a_step():
    stream = SegmentStream(
        Listed([3, 9, 4]),
        batch_size=2,
        segment_length=2,
        segments_per_step=4,
        seed=0,
        steps=None,
        shuffle=False,
    )
    first, second = stream
    assert first.documents.tolist() == [[0, 0, 2, 2], [1, 1, 1, 1]]
    assert first.starts.tolist() == [[True, False, True, False], [True, False, False, False]]
    assert first.lengths.tolist() == [[2, 1, 2, 2], [2, 2, 2, 2]]
    assert second.documents.tolist() == [[-1], [1]]
    assert second.targets.tolist() == [[[NO_TARGET]], [[NO_TARGET]]]


@given(lengths, options, st.integers(1, 12), st.data())
def test_resuming_at_any_step_changes_nothing(lengths, options, steps, data):
    for n in (steps, None):
        whole = list(SegmentStream(Listed(lengths), steps=n, **options))
        cut = data.draw(st.integers(0, len(whole)))
        stream = SegmentStream(Listed(lengths), steps=n, **options)
        iterator = iter(stream)
        head = [next(iterator) for _ in range(cut)]
        file = io.BytesIO()
        torch.save(stream.state_dict(), file)
        file.seek(0)
        resumed = SegmentStream(Listed(lengths), steps=n, **options)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert len(resumed) == len(whole)
        equal(head + list(resumed), whole)


@given(lengths, options, st.sampled_from([2, 3]), st.integers(1, 6))
def test_ranks_share_the_same_rows(lengths, options, world_size, steps):
    per_rank = options["batch_size"]
    whole = SegmentStream(
        Listed(lengths), steps=steps, **(options | {"batch_size": per_rank * world_size})
    )
    ranks = [
        SegmentStream(Listed(lengths), steps=steps, rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]
    joined = [
        type(parts[0])(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        for parts in zip(*ranks, strict=True)
    ]
    equal(joined, list(whole))
    ranks[0].load_state_dict(whole.state_dict())
    assert ranks[0].state_dict() == whole.state_dict()


def stream(lengths, **changes):
    options: dict = {
        "batch_size": 2,
        "segment_length": 4,
        "segments_per_step": 1,
        "seed": 0,
        "steps": None,
        "shuffle": True,
    }
    return SegmentStream(Listed(lengths), **(options | changes))


def test_order_is_a_function_of_seed_and_epoch():
    def order(batches):
        return torch.cat([batch.documents.flatten() for batch in batches]).tolist()

    lengths = [4] * 40
    twice = stream(lengths)
    first, second = order(twice), order(twice)
    again = stream(lengths)
    assert [order(again), order(again)] == [first, second]
    assert first != second and first != order(stream(lengths, seed=1))
    assert sorted(first) == sorted(second) == list(range(40))
    endless = order(stream(lengths, steps=40))
    assert endless == first + second


def test_steps_are_exact_and_no_row_is_ever_empty():
    batches = list(stream([3, 5], steps=17))
    assert len(batches) == len(stream([3, 5], steps=17)) == 17
    assert all((batch.lengths > 0).all() for batch in batches)


def test_short_documents_are_left_out_by_name(caplog):
    with caplog.at_level(logging.WARNING):
        batches = list(stream([1, 5, 1, 6]))
    assert "2 documents of less than two tokens left out: ['document-0', 'document-2']" in (
        caplog.text
    )
    assert {int(i) for batch in batches for i in batch.documents.flatten()} == {1, 3}
    with pytest.raises(ValueError, match="none of the 2 documents has two tokens"):
        stream([1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "the saved position has seed=0 but this run 3"),
        ({"segment_length": 8}, "segment_length=4 but this run 8"),
        ({"batch_size": 3}, "2 rows but this run 3: keep batch size times number of processes"),
        ({"lengths": [9, 8]}, "num_tokens=18 but this run 17"),
    ],
)
def test_a_position_of_another_stream_is_refused(changes, message):
    state = stream([9, 9]).state_dict()
    with pytest.raises(ValueError, match=message):
        stream(**({"lengths": [9, 9]} | changes)).load_state_dict(state)
