"""The fast form of attention equals the form that defines it."""

from functools import partial
from unittest import mock

import pytest
import torch
from helpers.models import make_memory, make_model, tokens
from helpers.sampled import each
from helpers.small_methods import METHODS, small_memory
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference.decoder import norm
from torch.utils._python_dispatch import TorchDispatchMode

from unimem.attention import backend, fast
from unimem.attention.kernels.cpu import CpuFlash
from unimem.attention.reference import attend, compute_logits
from unimem.attention.rotary import Frame
from unimem.config import ConfigError, compose
from unimem.memory.bank import MemoryBank
from unimem.memory.registry import PlanError
from unimem.memory.state import FREE, Memory
from unimem.model import layer as attention
from unimem.model.attach import attach, attached, checkpoint_activations
from unimem.model.segments import read, run

ONLY_BY_REFERENCE = {"em_llm", "h2o", "infllm", "landmark", "longmem", "tova"}
NOTHING_TO_READ = {"autocompressor", "rmt", "vanilla"}
LENGTH = 8


def outcome(memory, name, heads=4, kv_heads=2, use="own", checkpoint=False, dtype=torch.float32):
    """Hidden states and all gradients over segments whose documents begin and end anywhere."""
    model = attach(make_model(heads=heads, kv_heads=kv_heads).to(dtype), memory, name).train()
    if checkpoint:
        checkpoint_activations(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in attached(model).parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) / 4)
    ids = tokens(3, 7 * LENGTH).view(3, 7, LENGTH)
    starts = torch.zeros(3, 7, dtype=torch.bool)
    starts[1, 4] = starts[2, 1] = True
    lengths = torch.full((3, 7), LENGTH)
    lengths[1, 3] = 5
    hidden, _, losses = run(
        model, MemoryBank.empty(3), ids, starts=starts, lengths=lengths, use=use
    )
    hidden = hidden * (torch.arange(LENGTH) < lengths[..., None])[..., None]
    direction = torch.randn(hidden.shape, generator=generator)
    ((hidden * direction).sum() + sum(losses)).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach()} | grads


def same(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        error = (found[name] - truth).abs().max()
        assert error <= tolerance * truth.abs().max() + 1e-4 * tolerance, f"{name}: {error:.1e}"


def runs_fast(memory, **kwargs):
    """The outcome of `auto`, and how often the fast form ran."""
    with mock.patch.object(attention, "attend_fast", wraps=fast.attend_fast) as calls:
        found = outcome(memory, "auto", **kwargs)
    return found, calls.call_count


@pytest.mark.parametrize("method", METHODS)
def test_every_preset(method):
    memory = small_memory(method, LENGTH)
    found, calls = runs_fast(memory)
    slow = method in ONLY_BY_REFERENCE | NOTHING_TO_READ
    assert slow == (not calls), (
        f"{method} is read {calls} times in the fast form: take it out of ONLY_BY_REFERENCE or "
        "NOTHING_TO_READ, or put it there if no fast form can read it"
    )
    if calls:
        same(found, outcome(memory, "reference"))


@pytest.mark.parametrize("method", each(5, sorted({*METHODS} - ONLY_BY_REFERENCE)))
def test_both_forms_keep_float64(method):
    """Logits, log-sum-exps, matrices and multiplicities are not rounded to float32 on the way."""
    memory = small_memory(method, LENGTH)
    found = outcome(memory, "sdpa", dtype=torch.float64)
    assert all(value.dtype == torch.float64 for value in found.values())
    same(found, outcome(memory, "reference", dtype=torch.float64), 1e-11)


@pytest.mark.parametrize("method", sorted(ONLY_BY_REFERENCE))
def test_a_form_without_a_fast_one_keeps_float64(method):
    """Logits are smooth in the weights: a rounding to float32 would make steps of 1e-8.

    The decoder's own norms compute in float32, so others stand in for them.
    """
    model = attach(make_model().double(), small_memory(method, LENGTH))
    for name, layer in model.named_modules():
        if name.endswith("norm"):
            layer.forward = partial(norm, layer=layer)
    embedding, ids = model.get_input_embeddings().weight, tokens(1, 30)
    with torch.no_grad():
        start = embedding.clone()
        before, now, after = (
            read(model, ids).logits
            for step in (-1e-7, 0, 1e-7)
            if embedding.copy_(start + step * start.roll(1, 0)) is not None
        )
    assert now.dtype == torch.float64 and (after - now).abs().max() > 1e-8
    assert (after - 2 * now + before).abs().max() < 1e-9


@pytest.mark.parametrize("use", ["off", "other"])
@pytest.mark.parametrize("method", ["unimix", "bigbird", "streaming_llm", "infini_attention"])
def test_controls(method, use):
    memory = small_memory(method, LENGTH)
    same(outcome(memory, "auto", use=use), outcome(memory, "reference", use=use))


SEARCHES = {
    "none": {},
    "dot": {"similarity": {"topk": 3}},
    "live": {"similarity": {"topk": 3, "grad_topk": True}},
    "cosine": {"similarity": {"topk": 3, "metric": "cosine", "threshold": 0.1}},
    "all": {"similarity": {"topk": 99}},
    "nothing": {"similarity": {"topk": 0}},
}
PLACES = {
    "none": {},
    "window": {"position": {"window": 6}},
    "strided": {"position": {"window": 7, "stride": 2, "num_global": 1}},
    "blocks": {"position": {"window": 4, "window_block": 4}},
    "constant globals": {"position": {"window": 5, "num_global": 3, "grad_global": False}},
    "globals alone": {"position": {"window": 0, "num_global": 2}},
    "everything": {"all": {}},
}
SHAPES = {"zero": "joint", "true": "gated", "none": "joint", "capped": "gated"}
COMBINED = [
    pytest.param(search, place, scheme, id=f"{search}-{place}-{scheme}",
                 marks=[pytest.mark.slow] if (i + j + k) % 5 else [])
    for i, search in enumerate(SEARCHES)
    for j, place in enumerate(PLACES)
    for k, scheme in enumerate(SHAPES)
    if (search, place) != ("none", "none") and not (scheme == "capped" and search != "none")
]  # fmt: skip


@pytest.mark.parametrize(("search", "place", "scheme"), COMBINED)
def test_what_is_read(search, place, scheme):
    for size, kv_heads, back in ((9, 2, 1), (30, 4, 0), (30, 2, 6)):
        memory = make_memory(
            LENGTH,
            management={"fifo": {"size": size}},
            reading=SEARCHES[search] | PLACES[place],
            injection={"layers": [1, 2]},  # in layer 0 equal tokens have equal cosines: ties
            positions=scheme,
            fusion=SHAPES[scheme],
            bptt_segments=back,
        )
        found, calls = runs_fast(memory, kv_heads=kv_heads)
        assert calls
        same(found, outcome(memory, "reference", kv_heads=kv_heads))


class Banded(CpuFlash):
    """A kernel that knows bands, and counts them."""

    name, bands, count = "flash", True, 0

    def forward(self, query, key, value, bias, band):
        return super().forward(query, key, value, self.mask(query, key, bias, band), None)

    def backward(self, grad, query, key, value, bias, band, out, lse):
        bias = self.mask(query, key, bias, band)
        return super().backward(grad, query, key, value, bias, None, out, lse)

    def mask(self, query, key, bias, band):
        if band is None:
            return bias
        type(self).count += 1
        T, N = query.shape[2], key.shape[2]
        ahead = torch.arange(N) - torch.arange(N - T, N)[:, None]
        hidden = (ahead > 0) | (ahead < -band)
        return torch.zeros(1, 1, T, N).masked_fill(hidden, -torch.inf)


@pytest.mark.parametrize("scheme", ["zero", "true"])
@pytest.mark.parametrize("search", ["none", "dot"])
def test_window_and_segment_in_one_band(scheme, search):
    place = {"position": {"window": 9, "num_global": 2, "grad_global": False}}
    memory = make_memory(
        LENGTH,
        management={"fifo": {"size": 20}},
        reading=SEARCHES[search] | place,
        positions=scheme,
        bptt_segments=1,
    )
    Banded.count = 0
    with mock.patch("unimem.model.segments.choose", return_value=Banded()):
        found = outcome(memory, "auto")
    assert Banded.count
    same(found, outcome(memory, "reference"))


class Waits(TorchDispatchMode):
    """Counts the operations for whose result a GPU would have to be waited for."""

    count = 0
    paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += func in waits and not self.paused
        return func(*args, **kwargs or {})


class OnGpu(Banded):
    """Stands for a kernel of a GPU: what it does on the CPU is not counted."""

    def __init__(self, waits):
        self.waits = waits

    def forward(self, *given):
        self.waits.paused = True
        found = super().forward(*given)
        self.waits.paused = False
        return found

    def backward(self, *given):
        self.waits.paused = True
        found = super().backward(*given)
        self.waits.paused = False
        return found


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("method", ["vanilla", "transformer_xl", "memorizing_transformer"])
def test_waits_do_not_depend_on_the_number_of_layers(method, checkpoint):
    counts = []
    for layers in (2, 4):
        chosen = {"injection": {"layers": [layers - 1]}} if method.startswith("mem") else {}
        memory = small_memory(method, LENGTH).model_copy(update=chosen)
        model = attach(make_model(layers=layers), memory).train()
        if checkpoint:
            checkpoint_activations(model)
        ids, starts = tokens(3, 4 * LENGTH).view(3, 4, LENGTH), torch.zeros(3, 4, dtype=torch.bool)
        lengths = torch.full((3, 4), LENGTH)
        with Waits() as waits:
            kernel = OnGpu(waits)
            with mock.patch("unimem.model.segments.choose", return_value=kernel):
                hidden, _, _ = run(model, MemoryBank.empty(3), ids, starts=starts, lengths=lengths)
            hidden.sum().backward()
        counts.append(waits.count)
    assert counts[0] == counts[1]


INNER = make_model(layers=1).model.rotary_emb
READINGS = st.fixed_dictionaries(
    {},
    optional={
        "position": st.fixed_dictionaries(
            {
                "window": st.sampled_from([0, 1, 3, 4, 9, 30]),
                "num_global": st.sampled_from([0, 2, 4]),
                "grad_global": st.booleans(),
                "stride": st.sampled_from([1, 1, 2]),
                "window_block": st.sampled_from([1, 1, 3]),
            }
        ),
        "similarity": st.fixed_dictionaries(
            {
                "topk": st.sampled_from([0, 1, 4, 99]),
                "metric": st.just("cosine"),
                "threshold": st.sampled_from([None, 0.2]),
                "grad_topk": st.booleans(),
            }
        )
        | st.fixed_dictionaries(
            {"topk": st.sampled_from([0, 1, 4, 99]), "grad_topk": st.booleans()}
        ),
        "all": st.just({}),
    },
).filter(bool)


def by_both_forms(plan, kernel, T, M, free, groups, gate, learns, window):
    """Output and gradients of a segment of T queries over M slots, `free` of them in each row."""
    generator = torch.Generator().manual_seed(M)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    query, (key, value) = draw(2, 4, T, 8), (draw(2, groups, T, 8) for _ in range(2))
    slots = [draw(2, groups, M, 8).requires_grad_(learns) for _ in range(2)]
    gate = draw(4) if gate else None
    places = torch.arange(M) - torch.tensor(free)[:, None]
    positions = M - torch.tensor(free)[:, None] + torch.arange(T)
    memory = Memory(*slots, places.where(places >= 0, FREE))
    index = torch.arange(T)[None]
    real = torch.ones(2, T, dtype=torch.bool)
    rotate, origin = partial(INNER, query), -positions[:, :1]
    frame = Frame(rotate, index, positions, origin, 8, real, True, window)
    attn_mask = attention.causal(T, query.device)
    given = {
        "scaling": 8**-0.5,
        "attn_mask": attn_mask if window is None else attn_mask.triu(1 - window),
    }
    is_causal = window is None or window >= T
    weighing = compute_logits(query, key, memory, plan, frame, notes={}, **given)
    outs = (
        fast.attend_fast(
            query,
            key,
            value,
            memory,
            plan,
            frame,
            gate=gate,
            kernel=kernel,
            is_causal=is_causal,
            **given,
        ),
        attend(weighing, value, memory, gate),
    )
    needs = [x for x in (query, key, value, *slots, gate) if x is not None and x.requires_grad]
    slope = torch.randn(outs[0].shape, generator=generator)
    for out in outs:
        grads = torch.autograd.grad(out, needs, slope, allow_unused=True)
        yield (
            out,
            [torch.zeros_like(x) if g is None else g for x, g in zip(needs, grads, strict=True)],
        )


# what bands once got wrong: global slots in the window of early queries only, keys that are turned
# in two ways, and the free slot before a document's first token, whose place is FREE
@example(
    {"position": {"window": 4, "num_global": 2}}, "true", "joint", Banded(), 4, 4, 99, 2, True, None
)
@example({"position": {"window": 8}}, "capped", "joint", Banded(), 4, 5, 99, 2, True, None)
@example({"position": {"window": 1}}, "zero", "joint", Banded(), 1, 5, 0, 2, True, None)
# the layer's own sliding window is as wide as the band, and narrower
@example({"position": {"window": 4}}, "true", "joint", Banded(), 4, 9, 99, 2, True, 5)
@example({"position": {"window": 4}}, "true", "joint", Banded(), 4, 9, 99, 2, True, 4)
# one slot is both the oldest and the newest of what lies within reach
@example(
    {"position": {"window": 4, "num_global": 2}},
    *("true", "joint", CpuFlash(), 4, 20, 1, 2, True, None),
)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    reading=READINGS,
    positions=st.sampled_from(["zero", "true", "none", "capped", "cache_index"]),
    fusion=st.sampled_from(["joint", "gated"]),
    kernel=st.sampled_from([CpuFlash(), Banded()]),
    T=st.sampled_from([1, 4, 7]),
    M=st.sampled_from([1, 3, 5, 9, 20, 40]),
    left=st.sampled_from([0, 1, 3, 99]),
    groups=st.sampled_from([1, 2, 4]),
    learns=st.booleans(),
    sliding=st.sampled_from([None, None, 1, 3, 6, 12]),
)
def test_one_segment(reading, positions, fusion, kernel, T, M, left, groups, learns, sliding):
    """Memories smaller and larger than window and globals, and rows that hold fewer slots."""
    try:
        plan = make_memory(8, reading=reading, positions=positions, fusion=fusion).plan(1).layers[0]
    except PlanError:
        assume(False)
    assume(plan.needs_reference is None)
    free = (0, max(M - left, 0))
    gated = fusion == "gated"
    found, expected = by_both_forms(plan, kernel, T, M, free, groups, gated, learns, sliding)
    assert (found[0] - expected[0]).abs().max() <= 5e-6 * expected[0].abs().max()
    largest = max(grad.abs().max() for grad in expected[1])
    for grad, truth in zip(found[1], expected[1], strict=True):
        assert (grad - truth).abs().max() <= 5e-6 * largest


def test_recomputed_activations_search_once():
    memory = small_memory("memorizing_transformer", LENGTH)
    with mock.patch.object(fast, "search", wraps=fast.search) as plain:
        expected = outcome(memory, "auto")
    with mock.patch.object(fast, "search", wraps=fast.search) as again:
        found = outcome(memory, "auto", checkpoint=True)
    assert again.call_count == plain.call_count > 0
    same(found, expected, 1e-6)


def test_autocast_agrees_up_to_its_rounding():
    memory = small_memory("transformer_xl", LENGTH)
    ids, nll = tokens(2, 30), []
    for name in ("auto", "reference"):
        model = attach(make_model(), memory, name)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            nll.append(read(model, ids).nll[:, 1:])
    assert (nll[0] - nll[1]).abs().mean() < 0.05


def chosen(name, device="cpu", dtype=torch.float32, method="unimix"):
    plan = small_memory(method, LENGTH).plan(3)
    return backend.choose(name, plan, torch.device(device), dtype)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_first_asked_without_gradient(mode):
    backend._working.cache_clear()
    with mode():
        assert isinstance(chosen("auto"), CpuFlash)


def test_auto_says_once_what_it_took(caplog):
    backend._say.cache_clear()
    with caplog.at_level("INFO", "unimem"):
        chosen("auto")
        chosen("auto")
        chosen("auto", method="h2o")
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "attention.backend=auto: sdpa (CpuFlash)"
    assert "by reference: memory.management=score_evict asks how much attention" in second


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch, caplog):
    class Wrong(CpuFlash):
        def backward(self, *args):
            return tuple(1.01 * grad for grad in super().backward(*args))

    monkeypatch.setattr(backend, "_make", lambda name, device: Wrong())
    backend._working.cache_clear()
    with caplog.at_level("INFO", "unimem"):
        assert chosen("auto") is None
    assert "away from the reference" in caplog.records[-1].getMessage()
    with pytest.raises(backend.BackendError, match="attention.backend=sdpa is .* away"):
        chosen("sdpa")
    backend._working.cache_clear()


@pytest.mark.parametrize(("name", "missing"), [("flash", "needs a CUDA GPU")])
def test_what_cannot_run_here_says_what_is_missing(name, missing):
    with pytest.raises(backend.BackendError, match=f"attention.backend={name} {missing}"):
        chosen(name)


def test_what_has_no_fast_form_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match=r"attention.backend=sdpa cannot compute layer 0: .*h"):
        compose("method=h2o", "attention.backend=sdpa")
    with pytest.raises(ConfigError, match=r"attention.backend.*'reference'"):
        compose("attention.backend=fast")


def test_flex_reads_on_the_cpu_and_says_that_it_cannot_train():
    memory, ids = small_memory("unimix", LENGTH), tokens(2, 30)
    with torch.no_grad():
        flex = read(attach(make_model(), memory, "flex"), ids).logits
        plain = read(attach(make_model(), memory, "reference"), ids).logits
    assert (flex - plain).abs().max() <= 1e-5 * plain.abs().max()
    with pytest.raises(backend.BackendError, match="attention.backend=flex fails for .*backward"):
        outcome(memory, "flex")
