"""What ties the methods together, and to the model itself."""

import pytest
import torch
from helpers.models import make_memory, make_model, tokens
from helpers.sampled import each
from helpers.small_methods import METHODS, small_memory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import (
    bigbird,
    compressive_transformer,
    focused_transformer,
    infini_attention,
    longformer,
    sparse_transformer,
    sparse_transformer_fixed,
    streaming_llm,
)

from unimem.memory.bank import MemoryBank
from unimem.memory.pool import Pooler
from unimem.memory.registry import option_class
from unimem.memory.state import Memory
from unimem.model.attach import attach, attached, checkpoint_activations
from unimem.model.segments import read, run
from unimem.training.footprint import state_bytes_per_row

IDS = tokens(2, 37)


def logits(memory, ids=IDS, **how):
    with torch.no_grad():
        return read(attach(make_model(), memory), ids, **how).logits


def close(found, expected, tolerance=1e-5):
    assert ((found - expected).abs().max() / expected.abs().max()).item() < tolerance


@pytest.fixture(scope="module")
def full_context():
    with torch.no_grad():
        return make_model()(IDS).logits


@pytest.fixture(scope="module")
def vanilla():
    return logits(small_memory("vanilla"))


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("streaming_llm", ["memory.size=99", "memory.window=99"]),
        ("lm_infinite", ["memory.size=99", "memory.window=99", "memory.limit=100"]),
        ("h2o", ["memory.size=99"]),
        ("tova", ["memory.size=99"]),
        ("compressive_transformer", ["memory.size=99"]),
        ("compressive_transformer", ["memory.rate=1", "memory.compressed_size=null"]),
        ("longt5_global", ["memory.size=99"]),
        ("sparse_transformer", ["memory.period=1"]),
        ("sparse_transformer_fixed", ["memory.columns=5"]),
        ("bigbird", ["memory.random_blocks=99"]),
        ("longnet", ["memory.dilated_spans=[99]", "memory.dilated_rates=[1]", "memory.size=99"]),
        ("unlimiformer", ["memory.topk=99", "memory.injection.layers=[0,1,2]"]),
        ("infllm", ["memory.window=99", "memory.limit=99"]),
        ("em_llm", ["memory.window=99", "memory.limit=99"]),
        ("full_context", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_with_room_for_everything_it_is_the_full_context_model(method, overrides, full_context):
    close(logits(small_memory(method, 8, *overrides)), full_context)


@pytest.mark.parametrize("method", ["longmem", "block_recurrent", "infini_attention"])
def test_a_closed_gate_is_vanilla(method, vanilla):
    model = attach(make_model(), small_memory(method))
    with torch.no_grad():
        for gate in attached(model).gates.values():
            gate.fill_(-torch.inf)
        close(read(model, IDS).logits, vanilla)


@pytest.mark.parametrize("method", each(4, METHODS))
def test_controls_take_memory_away_or_show_the_neighbours(method, vanilla):
    """Read off, a method of whole segments is vanilla; two equal rows are each other's memory."""
    memory = small_memory(method)
    off = logits(memory, use="off")
    plan = memory.plan(3)
    if plan.soft is None and all(
        layer.is_plain_causal or layer.observes for layer in plan.layers.values()
    ):
        close(off, vanilla)
    assert off.isfinite().all() and logits(memory, use="other").isfinite().all()
    same = IDS[:1].expand(2, -1)
    close(logits(memory, same, use="other"), logits(memory, same))


def test_unimix_without_its_other_parts_is_transformer_xl():
    layers = ["memory.injection=layers", "memory.injection.layers=[1,2]"]
    parts = ["memory.writing=direct", "memory.topk=0", "memory.num_global=0"]
    parts.append("~memory.num_soft_tokens")
    unimix = small_memory("unimix", 8, *layers, *parts, "memory.window=8", "memory.size=8")
    close(logits(unimix), logits(small_memory("transformer_xl", 8, *layers)), 1e-6)


@pytest.mark.parametrize("length", each(2, [3, 1, 8, 13]))
def test_patterns_are_one_mask_for_any_segment_length(length):
    plain = make_model()
    everywhere = {"length": length, "layers": (0, 1, 2)}
    for method, expected in (
        ("sparse_transformer", sparse_transformer.logits(plain, IDS, period=5, **everywhere)),
        (
            "sparse_transformer_fixed",
            sparse_transformer_fixed.logits(plain, IDS, period=5, columns=2, **everywhere),
        ),
        ("bigbird", bigbird.logits(plain, IDS, block=3, random_blocks=2, seed=5, **everywhere)),
        ("streaming_llm", streaming_llm.logits(plain, IDS, num_pinned=3, window=9, **everywhere)),
    ):
        close(logits(small_memory(method, length)), expected)
    position = {"window": 6, "stride": 2, "num_global": 2}
    memory = make_memory(length, reading={"position": position}, local="reading")
    close(logits(memory), longformer.logits(plain, IDS, **position, **everywhere))


PATTERNS = {
    "position": st.fixed_dictionaries(
        {
            "window": st.integers(0, 9),
            "stride": st.integers(1, 3),
            "window_block": st.integers(1, 4),
            "num_global": st.integers(0, 3),
        }
    ),
    "strided": st.fixed_dictionaries({"period": st.integers(2, 7), "columns": st.integers(0, 2)}),
    "random": st.fixed_dictionaries(
        {"random_size": st.integers(1, 5), "random_blocks": st.integers(1, 2)}
    ),
    "dilated": st.lists(st.integers(3, 20), min_size=2, max_size=3).map(
        lambda spans: {"dilated_spans": spans, "dilated_rates": [1, 4, 3][: len(spans)]}
    ),
}
UNITED = st.lists(st.sampled_from(sorted(PATTERNS)), min_size=2, max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: PATTERNS[name] for name in names})
)
TWICE = {"dilated": {"dilated_spans": [12, 12], "dilated_rates": [1, 1]}}


# a slot that two readings name counts by the first, in memory as in the own segment
@example({"position": {"window": 9}, **TWICE}, 4, "sdpa")
@example({**TWICE, "position": {"window": 9}}, 4, "reference")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    reading=UNITED,
    length=st.integers(1, 12),
    backend=st.sampled_from(["reference", "sdpa"]),
)
def test_united_patterns_are_one_mask_for_any_segment_length(reading, length, backend):
    def read_by(length, backend):
        memory = make_memory(length, reading=reading, local="reading")
        with torch.no_grad():
            return read(attach(make_model(layers=1), memory, backend), IDS[:1, :30]).logits

    close(read_by(length, backend), read_by(30, "reference"))


@pytest.mark.parametrize("retrieval", ["query", "segment"])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("beside", ["nothing", "window", "globals", "gaps"])
def test_with_room_for_all_blocks_no_slot_is_hidden(beside, start, retrieval):
    budgets = {"block_size": 5, "topk_blocks": 99, "block_start": start, "retrieval": retrieval}
    others = {
        "nothing": {},
        "window": {"position": {"window": 9, "num_global": 2}},
        "globals": {"position": {"window": 0, "num_global": 3}},
        "gaps": {"position": {"window": 12, "stride": 3}},
    }
    memory = make_memory(4, reading={**others[beside], "block_similarity": budgets})
    close(logits(memory), logits(make_memory(4)))


def test_other_poolings_and_rules_are_their_references():
    plain, budgets = make_model(), {"size": 7, "compressed_size": 4, "rate": 3}
    expected = compressive_transformer.logits(
        plain, IDS, length=8, layers=(0, 1, 2), pool="max", **budgets
    )
    close(logits(small_memory("compressive_transformer", 8, "memory.pool=max")), expected)
    model = attach(make_model(), small_memory("infini_attention", 8, "memory.delta=false"))
    gates = {int(layer): gate for layer, gate in attached(model).gates.items()}
    expected = infini_attention.logits(
        plain, IDS, length=8, layers=(0, 1, 2), gate=gates, delta=False
    )
    close(read(model, IDS).logits, expected)


def test_crossbatch_reads_other_rows_in_training_only():
    ids = tokens(3, 37)
    more = ["memory.crossbatch=1", "memory.bptt_segments=99"]
    model = attach(make_model(), small_memory("focused_transformer", 8, *more))
    for training, others in ((True, 1), (False, 0)):
        model.train(training)
        found = read(model, ids, gradient=True).logits
        plain = make_model()
        expected = focused_transformer.logits(
            plain, ids, length=8, layers=(0, 2), crossbatch=others
        )
        close(found, expected)
        weights = [m.get_input_embeddings().weight for m in (model, plain)]
        gradients = [
            torch.autograd.grad(out.square().mean(), weight)[0]
            for out, weight in zip((found, expected), weights, strict=True)
        ]
        close(*gradients, 1e-4)
    with pytest.raises(ValueError, match=r"crossbatch=1 reads as many other rows.*has 1 rows"):
        read(model.train(), ids[:1])


@pytest.mark.parametrize("method", ["h2o", "tova"])
def test_evicted_heads_keep_their_budget_and_the_newest(method):
    recent = 3 if method == "h2o" else 0
    bank = read(attach(make_model(), small_memory(method)), IDS, end=True).bank
    for memory in bank.layers.values():
        assert len(memory) == 7 and memory.used.all()
        assert memory.places.shape[1] == (2 if method == "h2o" else 1)
        newest = memory.places[..., len(memory) - recent :]
        assert newest.flatten().tolist() == newest.shape[:2].numel() * list(range(37 - recent, 37))
    if method == "h2o":
        layers = bank.layers.values()
        assert any(not torch.equal(m.places[:, 0], m.places[:, 1]) for m in layers)


def test_pinned_tokens_stay_beside_exactly_the_newest():
    bank = read(attach(make_model(), small_memory("streaming_llm")), IDS, end=True).bank
    expected = [0, 1, 2, *range(29, 37)]
    assert bank.layers[0].positions.tolist() == [expected, expected]


def test_a_learned_pooling_is_a_convolution_and_learns_by_reconstruction_alone():
    generator = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(2, 1, 2, 12, 4, generator=generator).unbind(0)
    kernels = torch.randn(2, 2, 3, 4, 4, generator=generator).requires_grad_()
    weights = {"pooling_keys": kernels[0], "pooling_values": kernels[1]}
    keys.requires_grad_(), queries.requires_grad_()
    pooler = Pooler("pooling", "conv", 3, weights)
    old = Memory(keys, keys, torch.arange(12)[None])
    new = pooler(old)
    for head in range(2):
        weight = kernels[0, head].permute(2, 1, 0)  # [out, in, c]
        expected = torch.nn.functional.conv1d(keys[:, head].mT, weight, stride=3).mT
        torch.testing.assert_close(new.keys[:, head], expected)
    assert new.positions.tolist() == [[2, 5, 8, 11]]
    (loss,) = pooler.reconstruction(queries, old)
    loss.backward()
    assert kernels.grad is not None and kernels.grad.abs().sum() > 0
    assert keys.grad is None and queries.grad is None


@pytest.mark.parametrize("method", ["compressive_transformer", "h2o", "landmark", "ccm"])
def test_activation_checkpointing_changes_nothing(method):
    """Not the memory, nor the losses that options add, which are counted once."""

    def train(checkpointing):
        model = attach(make_model(), small_memory(method, 8, "memory.bptt_segments=2")).train()
        if checkpointing:
            checkpoint_activations(model)
        starts, lengths = torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), 8)
        torch.manual_seed(0)
        hidden, bank, losses = run(
            model, MemoryBank.empty(2), IDS[:, :24].view(2, 3, 8), starts=starts, lengths=lengths
        )
        (hidden.square().mean() + sum(losses)).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return bank, losses, gradients

    bank, losses, gradients = train(False)
    again, losses_again, gradients_again = train(True)
    assert len(losses) == len(losses_again) == (6 if method == "compressive_transformer" else 0)
    for layer, memory in bank.layers.items():
        assert torch.equal(memory.positions, again.layers[layer].positions)
    for name, gradient in gradients.items():
        close(gradients_again[name], gradient + 1e-12, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_state_is_as_large_as_announced(method):
    model = attach(make_model(), small_memory(method))
    most, bank = 0, None
    with torch.no_grad():
        for part in tokens(1, 40).split(8, 1):
            got = read(model, part, bank=bank)
            bank = got.bank
            most = max(most, bank.bytes_per_row())
    assert state_bytes_per_row(model, 40, torch.float32) == most


def test_random_blocks_are_drawn_alike_everywhere():
    """A function of seed, layer, head and block: no call, batch or device changes it."""
    reading = option_class("reading", "random")(random_size=2, random_blocks=2, random_seed=3)
    places = torch.arange(24)
    whole = reading.links(places[None, None, :, None], places[None, None, None], 4, 1)
    for t in (9, 16, 23):
        part = reading.links(
            places[None, None, t : t + 1, None], places[None, None, None, :t], 4, 1
        )
        assert torch.equal(part[:, :, 0], whole[:, :, t, :t])
    drawn = whole.sum(-1)[0]
    assert (drawn[:, 6:] == 4).all() and (drawn[:, :2] == 0).all() and (drawn[:, 2:4] == 2).all()
    other_head, other_layer = (
        whole[:, 0],
        reading.links(places[None, None, :, None], places[None, None, None], 4, 2),
    )
    assert not torch.equal(other_head, whole[:, 1]) and not torch.equal(other_layer, whole)


def test_a_forgotten_row_predicts_nothing_until_it_has_read():
    model = attach(make_model(), small_memory("em_llm"))
    with torch.no_grad():
        bank = read(model, IDS).bank.forget(torch.tensor([True, False]))
        after, fresh = read(model, IDS, bank=bank), read(model, IDS)
    assert after.nll[0, 0].isnan() and after.nll[1, 0].isfinite()
    close(after.logits[:1], fresh.logits[:1])


def test_a_matrix_stays_finite_and_exact_under_autocast():
    model = attach(make_model(), small_memory("infini_attention"))
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(1e3)
    with torch.autocast("cpu", torch.bfloat16):
        got = read(model, IDS, gradient=True)
    got.nll[:, 1:].mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert got.bank.layers[0].recurrent["matrix"].dtype == torch.float32
