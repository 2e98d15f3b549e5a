"""Documents read in pieces of any size, and beside others, are documents read alone and at once."""

import io
import random

import pytest
import torch
from helpers.models import VOCAB, make_memory, make_model, tokens
from helpers.sampled import each
from helpers.small_methods import METHODS, small_memory

from unimem.memory.bank import MemoryBank, OpenSegment
from unimem.model.attach import attach, attached
from unimem.model.segments import nll_of, read, run, token_nll

LENGTH = 6
DOCUMENTS = [tokens(1, count, seed)[0] for seed, count in enumerate((29, 17, 12, 5))]


def build(method, *more):
    """A model with the method's memory, its weights random."""
    model = attach(make_model(), small_memory(method, LENGTH, *more))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in attached(model).named_parameters():
            if not name.startswith("layers."):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def close(found, expected, tolerance=1e-4):
    if not expected.numel():
        assert found.shape == expected.shape
        return
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(), expected.nan_to_num()
    scale = expected.abs().max().clamp_min(1e-30)
    assert ((found - expected).abs().max() / scale).item() < tolerance


def padded(parts):
    """Rows of different length as ids [B, N], padded with what no vocabulary has, and lengths."""
    ids = torch.full((len(parts), max(map(len, parts)) or 1), -100)
    for row, part in zip(ids, parts, strict=True):
        row[: len(part)] = part
    return ids, [len(part) for part in parts]


def check_same_row(bank, row, alone):
    """Row `row` of a bank is the only row of another, whatever free slots stand in front."""
    assert bank.position[row] == alone.position[0]
    if not alone.layers:  # nothing was remembered yet
        assert not any(memory.used[row].any() for memory in bank.layers.values())
    for layer, expected in alone.layers.items():
        memory = bank.layers[layer].rows(torch.tensor([row]))
        for head in range(max(memory.places.shape[1], expected.places.shape[1])):
            used, own = (m.used[0, min(head, m.used.shape[1] - 1)] for m in (memory, expected))
            for name in ("keys", "values"):
                found, wanted = (getattr(m, name)[0] for m in (memory, expected))
                heads = slice(None) if memory.places.shape[1] == 1 else head
                close(found[heads][..., used, :], wanted[heads][..., own, :])
            places, wanted = (
                m.places[0, min(head, m.places.shape[1] - 1)] for m in (memory, expected)
            )
            assert places[used].tolist() == wanted[own].tolist()
            for name, note in expected.notes.items():
                found = memory.notes[name][0]
                close(
                    found[min(head, len(found) - 1), used].double(),
                    note[0, min(head, note.shape[1] - 1), own].double(),
                )
        for name, state in expected.recurrent.items():
            close(memory.recurrent[name], state)
    if alone.soft is not None:
        count = int(alone.soft.counts[0])
        assert bank.soft.counts[row] == count
        kept, wanted = (s[:, s.shape[1] - count :] for s in (bank.soft.states, alone.soft.states))
        close(kept[row], wanted[0])
    if alone.hidden is not None:
        close(bank.hidden[row], alone.hidden[0])
    waiting = [] if alone.open is None else alone.open.tokens[0].tolist()
    found = [] if bank.open is None else bank.open.tokens[row, : bank.open.lengths[row]].tolist()
    assert found == waiting


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("method", each(4, METHODS))
def test_rows_of_different_length_are_their_documents_alone(method, end):
    model = build(method)
    ids, lengths = padded(DOCUMENTS)
    with torch.no_grad():
        got = read(model, ids, lengths=torch.tensor(lengths), end=end)
        more = tokens(1, 9, 7)
        after = read(model, more.expand(len(ids), -1), bank=got.bank)
        for row, document in enumerate(DOCUMENTS):
            alone = read(model, document[None], end=end)
            count = len(document)
            close(got.logits[row, :count], alone.logits[0])
            close(got.nll[row, :count], alone.nll[0])
            close(got.last_logits[row], alone.logits[0, -1])
            assert got.logits[row, count:].isnan().all() and got.nll[row, count:].isnan().all()
            check_same_row(got.bank, row, alone.bank)
            on = read(model, more, bank=alone.bank)
            close(after.logits[row], on.logits[0])
            close(after.nll[row], on.nll[0])
            check_same_row(after.bank, row, on.bank)


@pytest.mark.parametrize("method", each(4, METHODS))
def test_pieces_of_any_size_are_the_document_read_at_once(method):
    model = build(method)
    looks_ahead = bool(attached(model).plan.remarks)
    whole = [read(model, document[None]) for document in DOCUMENTS]
    assert not any(out.hidden.requires_grad for out in whole)
    draw = random.Random(METHODS.index(method))
    bank, at = None, [0] * len(DOCUMENTS)
    while any(a < len(d) for a, d in zip(at, DOCUMENTS, strict=True)):
        most = draw.choice((1, 3, 8, 20))
        parts = [
            d[a : a + draw.randint(0, most)] for a, d in zip(at, DOCUMENTS, strict=True)
        ]  # fmt: skip
        if not any(map(len, parts)):
            continue
        ids, lengths = padded(parts)
        got = read(model, ids, lengths=lengths, bank=bank)
        file = io.BytesIO()
        torch.save(got.bank.state_dict(), file)
        file.seek(0)
        bank = MemoryBank.from_state_dict(torch.load(file, weights_only=True))
        for row, (begin, count) in enumerate(zip(at, lengths, strict=True)):
            seen = DOCUMENTS[row][None, : begin + count]
            expected = read(model, seen) if looks_ahead and begin + count else whole[row]
            part = slice(begin, begin + count)
            close(got.logits[row, :count], expected.logits[0, part])
            close(got.nll[row, :count], expected.nll[0, part])
            at[row] += count
    for row, out in enumerate(whole):
        check_same_row(bank, row, out.bank)


@pytest.mark.parametrize("method", ["unimix", "em_llm", "landmark"])
def test_token_by_token_is_the_document_read_at_once(method):
    model, ids = build(method), tokens(2, 20)
    bank, losses = None, []
    for token in ids.split(1, 1):
        got = read(model, token, bank=bank)
        bank = got.bank
        losses.append(got.nll)
    whole = read(model, ids)
    if not attached(model).plan.remarks:
        close(torch.cat(losses, 1), whole.nll)
    for row in range(2):
        check_same_row(bank, row, read(model, ids[row : row + 1]).bank)


@pytest.mark.parametrize("use", ["off", "other"])
def test_controls_of_rows_that_end_early(use):
    """Without memory each row is its document alone; beside another its last segments are too."""
    model = build("transformer_xl")
    documents = [DOCUMENTS[0][:24], DOCUMENTS[1][:12]]
    ids, lengths = padded(documents)
    got = read(model, ids, lengths=lengths, use=use)
    if use == "off":
        for row, document in enumerate(documents):
            close(got.logits[row, : len(document)], read(model, document[None], use=use).logits[0])
        return
    both = torch.stack([document[:12] for document in documents])
    close(got.logits[:, :12], read(model, both, use=use).logits)
    # the longer one goes on to see what the other held at its end
    held = read(model, both, use=use).bank
    before = read(model, ids[:, :18], lengths=[18, 12], use=use).bank
    check_same_row(before, 1, held.rows(torch.tensor([1])))
    hidden, _, _ = run(
        model,
        before,
        ids[:, None, 18:24].clamp_min(0),
        starts=torch.zeros(2, 1, dtype=torch.bool),
        lengths=torch.tensor([[6], [0]]),
        use="other",
    )
    close(got.logits[0, 18:], model.lm_head(hidden)[0, 0])


def test_a_segment_that_ends_early_is_remembered():
    model = attach(make_model(), make_memory(8))
    ids = tokens(1, 11)
    assert read(model, ids).bank.layers[0].positions.tolist() == [list(range(8))]
    assert read(model, ids).bank.open.tokens.tolist() == ids[:, 8:].tolist()
    bank = read(model, ids, end=True).bank
    assert bank.open is None and bank.layers[0].positions.tolist() == [list(range(11))]
    on = read(model, ids, bank=bank).bank
    assert on.layers[0].positions.tolist() == [list(range(19))]
    assert on.open.lengths.tolist() == [3]


def test_a_forgotten_row_loses_its_open_segment():
    model, ids = build("unimix"), tokens(2, 15)
    bank = read(model, ids).bank.forget(torch.tensor([True, False]))
    after = read(model, ids, bank=bank)
    assert after.nll[0, 0].isnan() and after.nll[1, 0].isfinite()
    close(after.logits[:1], read(model, ids[:1]).logits)
    close(after.logits[1:], read(model, ids.repeat(1, 2)).logits[1:, 15:])


def test_a_bank_saved_before_there_were_open_segments_is_read_on():
    model, ids = build("unimix"), tokens(2, 24)
    first = read(model, ids[:, :12])
    state = first.bank.state_dict()
    del state["open"]
    on = read(model, ids[:, 12:], bank=MemoryBank.from_state_dict(state))
    close(on.logits, read(model, ids).logits[:, 12:])


def test_only_read_continues_an_open_segment():
    model, ids = build("transformer_xl"), tokens(2, 8)
    marks = {"starts": torch.zeros(2, 1, dtype=torch.bool), "lengths": torch.full((2, 1), 6)}
    with pytest.raises(ValueError, match="open segment: read on with unimem.read"):
        run(model, read(model, ids).bank, ids[:, None, :6], **marks)


@pytest.mark.parametrize("lengths", [(20, 20), (20, 13)])
def test_gradient_is_kept_only_if_asked_or_in_training(lengths):
    model = build("transformer_xl", "memory.bptt_segments=1")
    ids, weight = tokens(2, 20), model.get_input_embeddings().weight

    def gradient(**more):
        out = read(model, ids, lengths=lengths, **more)
        return torch.autograd.grad(out.nll.nansum(), weight)[0] if out.nll.requires_grad else None

    assert gradient() is None
    asked = gradient(gradient=True)
    model.train()
    assert torch.equal(gradient(), asked)
    assert gradient(gradient=False) is None
    with torch.no_grad():
        assert gradient(gradient=True) is None
    alone = [
        torch.autograd.grad(read(model, row[None, :n]).nll.nansum(), weight)[0]
        for row, n in zip(ids, lengths, strict=True)
    ]
    close(asked, sum(alone))
    out = read(model, ids, lengths=lengths)
    (through,) = torch.autograd.grad(out.logits[1, : lengths[1]].sum(), weight)
    assert through.isfinite().all() and through.abs().sum() > 0


def test_losses_are_the_same_however_few_logits_at_a_time(monkeypatch):
    model, ids = build("transformer_xl"), tokens(2, 20)
    whole = read(model, ids)
    for at_once in (1, 3 * 2 * VOCAB):
        monkeypatch.setattr("unimem.model.segments.LOGITS_AT_ONCE", at_once)
        close(read(model, ids).nll, whole.nll, 1e-6)
    close(whole.nll[:, 1:], token_nll(whole.logits[:, :-1], ids[:, 1:]), 1e-6)
    assert nll_of(whole.head, whole.hidden[:, :0], ids[:, :0], VOCAB).shape == (2, 0)


def test_no_more_logits_are_made_than_are_asked_for(monkeypatch):
    monkeypatch.setattr("unimem.model.segments.LOGITS_AT_ONCE", 5 * VOCAB)
    for method in ("transformer_xl", "em_llm"):  # the latter wants each token's loss by itself
        model, sizes = build(method), []
        model.lm_head.register_forward_hook(lambda _, args, out, to=sizes: to.append(out.numel()))
        out = read(model, tokens(1, 50))
        assert max(sizes) <= 5 * VOCAB and sum(sizes) >= 50 * VOCAB
        sizes.clear()
        assert out.last_logits.shape == (1, VOCAB) and sizes == [VOCAB]


def test_a_mask_says_the_lengths():
    model, ids = build("transformer_xl"), tokens(2, 20)
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).long()
    close(read(model, ids, attention_mask=mask).nll, read(model, ids, lengths=[20, 13]).nll, 0.1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, "tensor of token ids .* got list; give torch.tensor"),
        ({"input_ids": {"input_ids": 1}}, TypeError, r'dict; .*batch\["input_ids"\]'),
        ({"input_ids": torch.ones(2, 3)}, ValueError, "integers, got torch.float32"),
        ({"input_ids": tokens(1, 8)[0]}, ValueError, r"\[B, N\] with N > 0, got \[8\]"),
        ({"input_ids": tokens(1, 8) + 60}, ValueError, "the model knows tokens 0 to 60"),
        ({"input_ids": tokens(1, 8) - 61}, ValueError, "padding is told by lengths="),
        ({"lengths": [9, 1]}, ValueError, r"2 whole numbers of 0 to 8.*got \[9, 1\]"),
        ({"lengths": [8]}, ValueError, r"2 whole numbers of 0 to 8.*got \[8\]"),
        ({"lengths": [0, 0]}, ValueError, "nothing to read"),
        ({"attention_mask": torch.ones(2, 7)}, ValueError, r"must be \[2, 8\]"),
        ({"attention_mask": torch.arange(16).view(2, 8)}, ValueError, "pad on the right"),
        ({"attention_mask": torch.ones(2, 8), "lengths": [8, 8]}, ValueError, "give one of them"),
        ({"bank": {"position": 1}}, TypeError, "bank of a reading, got dict"),
        ({"bank": MemoryBank.empty(3)}, ValueError, "bank has 3 rows but input_ids 2"),
        ({"use": "owm"}, ValueError, "use='owm' must be own, off or other"),
        ({"use": "other", "input_ids": tokens(1, 8)}, ValueError, "two rows or more"),
        ({"segments_per_call": 0}, ValueError, "segments_per_call=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_read_is_told(given, error, message):
    model = build("transformer_xl")
    ids = given.get("input_ids", tokens(2, 8))
    with pytest.raises(error, match=message):
        read(model, ids, **{k: v for k, v in given.items() if k != "input_ids"})


def test_rows_of_banks_are_joined_and_replaced():
    model = build("h2o")
    banks = [read(model, document[None]).bank for document in DOCUMENTS]
    joined = MemoryBank.join(banks)
    for row, bank in enumerate(banks):
        check_same_row(joined, row, bank)
    swapped = joined.replaced(torch.tensor([2, 0]), MemoryBank.join([banks[1], banks[3]]))
    for row, expected in enumerate((3, 1, 1, 3)):
        check_same_row(swapped, row, banks[expected])
    assert MemoryBank.join([MemoryBank.empty(1), banks[0]]).open.lengths.tolist() == [0, 5]
    assert OpenSegment.empty(2).tokens.shape == (2, 0)
