"""Every preset against an independent statement of its method, and in training."""

from importlib import import_module

import pytest
import torch
from helpers.models import make_model, tokens
from helpers.sampled import each
from helpers.small_methods import METHODS, SMALL, small_memory

from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach, attached
from unimem.model.segments import read, run, token_nll

NO_REFERENCE = {"longformer"}  # the authors' preset: its recorded traces are in test_golden.py
KV_HEADS = [pytest.param(2, id="gqa"), pytest.param(4, id="mha", marks=pytest.mark.slow)]
SHAPES = [(8, 37, 0), (5, 29, 1)]  # segment length, document length, seed


def build(method, kv_heads, length, seed=0, *more):
    """A model with the method's memory, what that adds set to random, and a plain one."""
    memory = small_memory(method, length, *more)
    plain = make_model(kv_heads=kv_heads, seed=seed)
    model = attach(make_model(kv_heads=kv_heads, seed=seed), memory)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in attached(model).named_parameters():
            if not name.startswith("layers."):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model, plain


def budgets(method, model):
    """What the reference is told: small budgets, and the weights that memory adds."""
    given, memory = dict(SMALL[method].budgets), attached(model)
    learned = memory.soft_tokens if memory.soft_tokens is not None else memory.inserted_tokens
    if method == "landmark":
        given["mark"] = learned[0]
    elif learned is not None:
        given["learned"] = learned
    if len(memory.gates):
        given["gate"] = {int(layer): gate for layer, gate in memory.gates.items()}
    return given


def close(found, expected, tolerance):
    assert ((found - expected).abs().max() / expected.abs().max()).item() < tolerance


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("method", [m for m in METHODS if m not in NO_REFERENCE])
def test_method_is_its_reference(method, kv_heads):
    reference = import_module(f"reference.{method}").logits
    for length, count, seed in SHAPES:
        ids = tokens(2, count, seed + 10)
        reach = [] if method == "vanilla" else ["memory.bptt_segments=99"]
        model, plain = build(method, kv_heads, length, seed, *reach, *SMALL[method].proof)
        got = read(model, ids, segments_per_call=99, end=True, gradient=True)
        given = budgets(method, model)
        layers = SMALL[method].layers
        expected = reference(plain, ids, length=length, layers=layers, **given)
        close(got.logits, expected, 1e-5)
        got.nll[:, 1:].mean().backward()
        found = {n: p.grad for n, p in attached(model).named_parameters() if p.grad is not None}
        for weight in attached(model).parameters():
            weight.grad = None
        token_nll(expected[:, :-1], ids[:, 1:]).mean().backward()
        weights = dict(model.named_parameters())
        for name, weight in plain.named_parameters():
            close(weights[name].grad, weight.grad, 1e-4)
        for name, weight in attached(model).named_parameters():
            if weight.grad is not None and name in found:
                close(found[name], weight.grad, 1e-4)


def segments(model, ids, starts=None, lengths=None, bank=None):
    """Read ids [B, S, T] from empty memory."""
    shape = ids.shape[:2]
    starts = torch.zeros(shape, dtype=torch.bool) if starts is None else starts
    lengths = torch.full(shape, ids.shape[2]) if lengths is None else lengths
    return run(model, bank or MemoryBank.empty(len(ids)), ids, starts=starts, lengths=lengths)[:2]


@pytest.mark.parametrize("method", each(4, METHODS))
def test_rows_hold_documents_of_their_own(method):
    """Rows with other documents, short last segments and resets are their documents alone."""
    model, _ = build(method, 2, 6)
    ids = tokens(3, 48).view(3, 8, 6)
    starts = torch.zeros(3, 8, dtype=torch.bool)
    starts[:, 0] = starts[0, 3] = starts[1, 5] = starts[2, 2] = True
    lengths = torch.full((3, 8), 6)
    lengths[0, 2], lengths[1, 4], lengths[2, 1] = 2, 5, 0  # of a document's last segment
    with torch.no_grad():
        hidden, _ = segments(model, ids, starts, lengths)
        for row, begin, end in ((0, 0, 3), (0, 3, 8), (1, 0, 5), (1, 5, 8), (2, 0, 1), (2, 2, 8)):
            text = torch.cat([ids[row, s, : lengths[row, s]] for s in range(begin, end)])
            alone = read(model, text[None]).logits[0]
            found = torch.cat([hidden[row, s, : lengths[row, s]] for s in range(begin, end)])
            # the last token of a document predicts nothing
            close(model.lm_head(found)[:-1], alone[:-1], 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_reaches_exactly_as_far_as_declared(method):
    """One BPTT window trains with a finite loss, and the next window gets no gradient from it."""
    model, _ = build(method, 2, 6)
    plan = attached(model).plan
    reach = plan.bptt_segments
    # every segment has tokens of its own, so the rows of the embedding tell who gets gradient
    ids = torch.arange(6 * (reach + 2)).view(1, -1, 6) % 61
    model.train()
    if any(layer.reading.crossbatch for layer in plan.layers.values()):
        ids = torch.cat([ids, (ids + 31) % 61])
        model.eval()
    hidden, _ = segments(model, ids)
    embedding = model.get_input_embeddings().weight
    for segment, expected in ((reach, range(reach + 1)), (reach + 1, [reach + 1])):
        loss = model.lm_head(hidden[:1, segment]).square().mean()
        (gradient,) = torch.autograd.grad(loss, embedding, retain_graph=True)
        assert loss.isfinite() and gradient.isfinite().all()
        rows = gradient.abs().sum(1)
        reached = [s for s, segment in enumerate(ids[0]) if bool(rows[segment].any())]
        assert reached == list(expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_read_on_from_a_saved_bank_is_read_at_once(method):
    model, _ = build(method, 2, 6)
    ids = tokens(2, 40)
    with torch.no_grad():
        whole = read(model, ids)
        first = read(model, ids[:, :24])
        bank = MemoryBank.from_state_dict(first.bank.state_dict())
        second = read(model, ids[:, 24:], bank=bank)
        close(second.logits, whole.logits[:, 24:], 1e-5)
        one_by_one = read(model, ids, segments_per_call=1)
    close(one_by_one.logits, whole.logits, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_token_changes_an_earlier_prediction(method):
    """To the token, or to the segment where the whole segment chooses what it reads."""
    model, _ = build(method, 2, 6)
    looks_ahead = bool(attached(model).plan.remarks)
    ids = tokens(1, 34)
    with torch.no_grad():
        expected = read(model, ids).logits
        for place in (4, 13, 29, 33):
            changed = ids.clone()
            changed[0, place] = (changed[0, place] + 1) % 61
            got = read(model, changed).logits
            before = place // 6 * 6 if looks_ahead else place
            if before:
                close(got[:, :before], expected[:, :before], 1e-6)
