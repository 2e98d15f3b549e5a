"""What must hold whatever the numbers: the identities that tie memory to the plain model."""

import io

import pytest
import torch
from helpers.models import FAMILIES, VOCAB, make_memory, make_model, tokens

from unimem.attention.reference import _part, fuse_joint
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach, attached, checkpoint_activations
from unimem.model.segments import read, run, token_nll

HEADS = {"mha": {"heads": 4, "kv_heads": 4}, "gqa": {"heads": 4, "kv_heads": 2}}
NOTHING = {
    "management": {"none": {}},
    "reading": {"none": {}},
    "injection": {"none": {}},
    "positions": "zero",
}
SOFT = {
    "writing": {"direct": {}, "model_forward": {"num_soft_tokens": 3, "soft_segments": 2}},
    "injection": {"layers": [1, 2], "input": {}},
    "bptt_segments": 1,
}
UNIMIX = SOFT | {
    "management": {"fifo": {"size": 20}},
    "reading": {
        "similarity": {"topk": 3},
        "position": {"window": 6, "stride": 1, "num_global": 2, "grad_global": False},
    },
    "positions": "zero",
}
GATED = {"fusion": "gated", "management": {"fifo": {"size": 12}}, "positions": "zero"}
CLEAR = {"management": {"clear_all": {"size": 17}}, "positions": "capped"}
TOPK = {"reading": {"similarity": {"topk": 5}}, "positions": "zero", "injection": {"layers": [1]}}
RMT = NOTHING | {
    "writing": {"model_forward": {"num_soft_tokens": 3}},
    "injection": {"input": {}},
    "bptt_segments": 1,
}
KINDS = {
    "full": {},
    "unimix": UNIMIX,
    "gated": GATED,
    "clear_all": CLEAR,
    "topk": TOPK,
    "rmt": RMT,
    "soft_segments": SOFT,
}


@pytest.fixture(params=HEADS)
def heads(request):
    return HEADS[request.param]


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def close(found, expected, tolerance=2e-4):
    scale = expected.abs().max()
    assert ((found - expected).abs().max() / scale).item() < tolerance


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def dense(model, ids, mask):
    """The untouched model over the whole text under a boolean mask [N, N]."""
    bias = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )
    return model(ids, attention_mask=bias[None, None].expand(len(ids), 1, -1, -1)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_1_no_injected_layer_is_the_untouched_model_to_the_bit(family):
    ids = tokens(2, 24)
    plain = [make_model(family)(part).logits for part in ids.split(8, 1)]
    names = list(make_model(family).state_dict())
    model = attach(make_model(family), make_memory(8, **NOTHING))
    assert list(model.state_dict()) == names
    for s, part in enumerate(ids.split(8, 1)):
        assert torch.equal(read(model, part).logits, plain[s])
    close(read(model, ids).logits, torch.cat(plain, 1), 1e-6)


def test_2_one_segment_with_empty_memory_is_the_same_model_to_the_bit(heads, kind):
    if "model_forward" in kind.get("writing", {}):
        kind = kind | {"writing": {"direct": {}}, "injection": {"all": {}}}
        kind |= {"management": {"unbounded": {}}, "reading": {"all": {}}}
    ids = tokens(2, 8)
    expected = make_model(**heads)(ids).logits
    assert torch.equal(
        read(attach(make_model(**heads), make_memory(8, **kind)), ids).logits, expected
    )


@pytest.mark.parametrize("length", [1, 5, 8, 40])
def test_3_full_context_memory_is_the_full_context_model(heads, length):
    ids = tokens(2, 33)
    plain = make_model(**heads)
    expected = plain(ids).logits
    token_nll(expected[:, :-1], ids[:, 1:]).mean().backward()
    model = attach(make_model(**heads), make_memory(length, bptt_segments=99))
    got = read(model, ids, gradient=True)
    close(got.logits, expected)
    got.nll[:, 1:].mean().backward()
    for name, gradient in gradients(plain).items():
        close(gradients(model)[name], gradient, 1e-3)


def test_3_full_context_memory_in_every_family():
    ids = tokens(2, 33)
    for family in FAMILIES:
        expected = make_model(family)(ids).logits
        close(read(attach(make_model(family), make_memory(8)), ids).logits, expected)


@pytest.mark.parametrize("positions", ["zero", "true", "capped"])
def test_4_topk_of_the_memory_size_is_reading_all(heads, positions):
    ids = tokens(2, 45)
    one = attach(make_model(**heads), make_memory(positions=positions))
    expected = read(one, ids).logits
    two = attach(
        make_model(**heads), make_memory(positions=positions, reading={"similarity": {"topk": 40}})
    )
    close(read(two, ids).logits, expected, 2e-6)


@pytest.mark.parametrize("size", [1, 7, 8, 20])
def test_5_fifo_keeps_exactly_the_last_positions(size):
    model = attach(make_model(), make_memory(8, management={"fifo": {"size": size}}))
    bank = None
    for end, part in zip((8, 16, 24, 29), tokens(2, 29).split(8, 1), strict=True):
        bank = read(model, part, bank=bank, end=True).bank
        for memory in bank.layers.values():
            expected = torch.arange(max(end - size, 0), end).expand(2, -1)
            assert torch.equal(memory.positions, expected)


def test_6_union_reads_a_slot_once(heads):
    ids = tokens(2, 45)

    def logits(reading):
        return read(
            attach(make_model(**heads), make_memory(reading=reading, positions="zero")), ids
        ).logits

    similarity = {"similarity": {"topk": 40}}
    window = {"position": {"window": 40}}
    close(logits(similarity | window), logits({"all": {}}), 1e-6)
    close(logits({"all": {}} | window), logits({"all": {}}), 1e-6)
    plan = make_memory(reading={"similarity": {"topk": 4}}).plan(3).layers[0].reading
    assert (plan | plan).parts == plan.parts


def test_7_no_token_changes_an_earlier_prediction(heads, kind):
    model = attach(make_model(**heads), make_memory(8, **kind))
    ids = tokens(1, 37)
    expected = read(model, ids).logits
    for place in (3, 8, 23, 36):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCAB
        got = read(model, changed).logits
        # soft tokens are numbers of the whole earlier segment, never of a later one
        close(got[:, :place], expected[:, :place], 1e-6)
        assert not torch.equal(got[:, place:], expected[:, place:])


def test_8_a_row_alone_is_the_row_in_a_batch(heads, kind):
    model = attach(make_model(**heads), make_memory(8, **kind))
    ids = tokens(3, 37)
    together = read(model, ids).logits
    for row in range(3):
        close(read(model, ids[row : row + 1]).logits, together[row : row + 1], 1e-5)
    order = torch.tensor([2, 0, 1])
    close(read(model, ids[order]).logits, together[order], 1e-5)


def test_9_a_reset_row_is_its_document_alone(heads, kind):
    model = attach(make_model(**heads), make_memory(8, **kind))
    ids = tokens(2, 40).view(2, 5, 8)
    starts = torch.zeros(2, 5, dtype=torch.bool)
    starts[0, 2] = starts[1, 3] = True
    lengths = torch.full((2, 5), 8)
    lengths[0, 1], lengths[1, 2] = 3, 0  # a short last segment, and an empty one

    hidden, bank, _ = run(model, MemoryBank.empty(2), ids, starts=starts, lengths=lengths)
    for row, begin in ((0, 2), (1, 3)):
        alone, own, _ = run(
            model,
            MemoryBank.empty(1),
            ids[row : row + 1, begin:],
            starts=starts[row : row + 1, begin:],
            lengths=lengths[row : row + 1, begin:],
        )
        close(hidden[row : row + 1, begin:], alone, 1e-5)
        assert bank.position[row] == own.position[0]
        for layer, memory in own.layers.items():
            kept = bank.layers[layer].positions[row]
            assert torch.equal(kept[kept >= 0], memory.positions[0][memory.positions[0] >= 0])


@pytest.mark.parametrize("kind", ["full", "unimix", "gated"])
def test_10_activation_checkpointing_writes_once(heads, kind):
    choices = KINDS[kind] | {"bptt_segments": 2}

    def train(checkpointing):
        model = attach(make_model(**heads), make_memory(8, **choices)).train()
        if checkpointing:
            checkpoint_activations(model)
        ids = tokens(2, 24)
        got = read(model, ids)
        got.nll[:, 1:].mean().backward()
        return got, gradients(model)

    plain, checked = train(False), train(True)
    assert torch.equal(plain[0].logits, checked[0].logits)
    for layer, memory in plain[0].bank.layers.items():
        assert torch.equal(memory.positions, checked[0].bank.layers[layer].positions)
    for name, gradient in plain[1].items():
        close(checked[1][name], gradient, 1e-6)


@pytest.mark.parametrize("length", [4, 7, 16])
def test_11_window_and_global_slots_are_the_longformer_mask(heads, length):
    window, stride, num_global = 12, 3, 2
    ids = tokens(2, 45)
    place = torch.arange(45)
    back = place[:, None] - place[None]
    segment = place[:, None] // length == place[None] // length
    earlier = ~segment & (back > 0)
    mask = segment & (back >= 0)
    mask |= earlier & (back <= window) & (back % stride == 0)
    mask |= earlier & (place < num_global)[None]
    expected = dense(make_model(**heads), ids, mask)
    position = {"window": window, "stride": stride, "num_global": num_global}
    model = attach(make_model(**heads), make_memory(length, reading={"position": position}))
    close(read(model, ids).logits, expected)


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_12_gradient_reaches_exactly_the_declared_segments(reach, soft):
    if soft and not reach:
        pytest.skip("refused by validation")
    choices = (RMT if soft else {}) | {"bptt_segments": reach}
    model = attach(make_model(), make_memory(8, **choices))
    # every segment has tokens of its own, so the rows of the embedding tell who gets gradient
    ids = torch.arange(40).view(1, 5, 8)
    segments = slice(0, reach + 2)
    hidden, _, _ = run(
        model,
        MemoryBank.empty(1),
        ids[:, segments],
        starts=torch.zeros(1, reach + 2, dtype=torch.bool),
        lengths=torch.full((1, reach + 2), 8),
    )
    # the last segment of the first group sees all its group; the next group's first sees itself
    for segment, expected in ((reach, range(reach + 1)), (reach + 1, [reach + 1])):
        model.zero_grad()
        loss = model.lm_head(hidden[:, segment]).square().mean()
        loss.backward(retain_graph=True)
        rows = model.get_input_embeddings().weight.grad.abs().sum(1)[:40].view(5, 8).sum(1)
        assert rows.nonzero().flatten().tolist() == list(expected)


def test_13_pooling_at_rate_1_is_direct(heads):
    ids = tokens(2, 45)
    expected = read(attach(make_model(**heads), make_memory()), ids).logits
    pooled = attach(make_model(**heads), make_memory(writing={"pooling": {"rate": 1}}))
    close(read(pooled, ids).logits, expected, 1e-6)


def test_14_a_closed_gate_is_vanilla(heads):
    ids = tokens(2, 45)
    expected = read(attach(make_model(**heads), make_memory(**NOTHING)), ids).logits
    model = attach(make_model(**heads), make_memory(**GATED))
    with torch.no_grad():
        for gate in model.memory.gates.values():
            gate.fill_(-torch.inf)
    close(read(model, ids).logits, expected, 1e-5)


@pytest.mark.parametrize("length", [1, 3, 8, 13])
def test_15_sliding_window_is_one_banded_mask(heads, length):
    window = 12
    ids = tokens(2, 45)
    place = torch.arange(45)
    back = place[:, None] - place[None]
    expected = dense(make_model(**heads), ids, (back >= 0) & (back <= window))
    model = attach(
        make_model(**heads),
        make_memory(
            length,
            reading={"position": {"window": window}},
            management={"fifo": {"size": window}},
        ),
    )
    close(read(model, ids).logits, expected)


def test_16_saved_and_loaded_is_uninterrupted_to_the_bit(heads, kind):
    model = attach(make_model(**heads), make_memory(8, **kind))
    with torch.no_grad():
        bank, expected = None, []
        for part in tokens(2, 40).split(8, 1):
            got = read(model, part, bank=bank)
            bank = got.bank
            expected.append(got)
        for stop in range(1, 5):
            file = io.BytesIO()
            torch.save(expected[stop - 1].bank.state_dict(), file)
            file.seek(0)
            bank = MemoryBank.from_state_dict(torch.load(file, weights_only=True))
            for later, part in zip(expected[stop:], tokens(2, 40).split(8, 1)[stop:], strict=True):
                got = read(model, part, bank=bank)
                bank = got.bank
                assert torch.equal(got.logits, later.logits)
                assert torch.equal(got.nll, later.nll)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_18_parts_merged_by_log_sum_exp_are_one_softmax(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 30, generator=generator) * 4
    values = torch.randn(2, 2, 30, 8, generator=generator).to(dtype)
    visible = torch.rand(2, 4, 6, 30, generator=generator) < 0.3
    visible[..., 20] = True
    visible[0, 0, 0, :20] = False  # a part that shows a query nothing
    parts = [
        _part(logits[..., part], visible[..., part], values[:, :, part])
        for part in (slice(0, 7), slice(7, 20), slice(20, 30))
    ]
    whole = logits.masked_fill(~visible, -torch.inf).softmax(-1).to(dtype)
    expected = whole @ values.repeat_interleave(2, 1)
    close(fuse_joint(*parts).float(), expected.float(), tolerance)


@pytest.mark.parametrize("kind", ["full", "topk", "unimix"])
def test_layer_parallel_is_segment_by_segment(heads, kind):
    ids = tokens(2, 45)
    found = []
    for segments_per_call in (1, 2, 99):
        choices = KINDS[kind] | {"bptt_segments": 9}
        model = attach(make_model(**heads), make_memory(8, **choices))
        got = read(model, ids, segments_per_call=segments_per_call, gradient=True)
        got.nll[:, 1:].mean().backward()
        found.append((got.logits, gradients(model)))
    for logits, gradient in found[1:]:
        close(logits, found[0][0], 1e-5)
        for name, expected in found[0][1].items():
            close(gradient[name], expected, 1e-4)


def test_reading_on_is_reading_at_once(heads, kind):
    model = attach(make_model(**heads), make_memory(8, **kind))
    ids = tokens(2, 45)
    whole = read(model, ids)
    first = read(model, ids[:, :24])
    second = read(model, ids[:, 24:], bank=first.bank)
    close(second.logits, whole.logits[:, 24:], 1e-5)
    close(torch.cat([first.nll[:, 1:], second.nll], 1), whole.nll[:, 1:], 1e-5)
    assert whole.nll[:, 0].isnan().all() and not whole.nll[:, 1:].isnan().any()


def test_controls_show_no_memory_and_the_neighbours(heads):
    ids = tokens(2, 40)
    model = attach(make_model(**heads), make_memory(8))
    vanilla = attach(make_model(**heads), make_memory(8, **NOTHING))
    close(read(model, ids, use="off").logits, read(vanilla, ids).logits, 1e-6)
    # two rows of the same document: the neighbour's memory is one's own
    same = ids[:1].expand(2, -1)
    close(read(model, same, use="other").logits, read(model, same).logits, 1e-6)
    assert not torch.allclose(read(model, ids, use="other").logits, read(model, ids).logits)


@pytest.mark.parametrize("identity", [3, 4, 8])
def test_bfloat16(identity):
    def build(**choices):
        return attach(make_model().bfloat16(), make_memory(8, **choices))

    ids = tokens(2, 33)
    got = read(build(), ids)
    assert got.bank.layers[0].keys.dtype == torch.bfloat16
    if identity == 3:
        expected = make_model().bfloat16()(ids).logits
    elif identity == 4:
        expected = read(build(reading={"similarity": {"topk": 40}}), ids).logits
    else:
        expected = torch.cat([read(build(), row[None]).logits for row in ids])
    nll = token_nll(expected[:, :-1], ids[:, 1:])
    assert (got.nll[:, 1:] - nll).abs().mean() / nll.mean() < 0.02


def test_soft_tokens_are_never_stored():
    model = attach(make_model(), make_memory(8, **SOFT))
    bank = read(model, tokens(2, 24)).bank
    assert torch.equal(bank.layers[1].positions, torch.arange(24).expand(2, -1))
    assert bank.soft is not None and bank.soft.states.shape == (2, 2, 3, 32)


def test_bytes_per_row_counts_the_state():
    model = attach(make_model(), make_memory(8, management={"fifo": {"size": 16}}))
    bank = read(model, tokens(2, 40)).bank
    # 3 layers, keys and values of 2 heads of 8 float32 numbers, and an int64 position
    assert bank.bytes_per_row() == 3 * 16 * (2 * 2 * 8 * 4 + 8)
    assert attached(model).plan.segment_length == 8
