import numpy as np
import pytest
import torch
from evaluation.corpora import Listed
from helpers.models import make_memory, make_model

from unimem import attach, read
from unimem.evaluation.sample import Sample
from unimem.evaluation.score import score
from unimem.memory.bank import MemoryBank
from unimem.model.segments import run, token_nll

LENGTHS = [30, 5, 41, 2, 17, 64, 9]
METHODS = {
    "unbounded": {},
    "fifo": {"management": {"fifo": {"size": 12}}, "positions": "zero"},
    "rmt": {
        "management": {"none": {}},
        "writing": {"model_forward": {"num_soft_tokens": 3}},
        "reading": {"none": {}},
        "injection": {"input": {}},
        "bptt_segments": 1,
    },
    "vanilla": {
        "management": {"none": {}},
        "reading": {"none": {}},
        "injection": {"none": {}},
    },
}


def model_of(method):
    torch.manual_seed(3)
    return attach(make_model(), make_memory(8, **METHODS[method]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use", ["own", "off"])
@pytest.mark.parametrize(("batch_size", "segments_per_call"), [(1, 1), (3, 2), (20, 5)])
def test_equals_reading_each_document_alone(method, use, batch_size, segments_per_call):
    model, documents = model_of(method), Listed(LENGTHS)
    scores = score(
        model,
        documents,
        segment_length=8,
        batch_size=batch_size,
        use=use,
        segments_per_call=segments_per_call,
    )
    assert scores.documents == list(range(len(LENGTHS)))
    assert scores.tokens == sum(LENGTHS) - len(LENGTHS)
    for i, nll in enumerate(scores.nll):
        with torch.no_grad():
            alone = read(model, torch.from_numpy(documents.ids(i))[None], use=use).nll[0, 1:]
        np.testing.assert_allclose(nll, alone.numpy(), atol=1e-5)


def test_other_equals_reading_side_by_side():
    model, documents = model_of("fifo"), Listed([24, 24])
    scores = score(model, documents, segment_length=8, batch_size=2, use="other")
    ids = torch.from_numpy(np.stack(documents.all))
    with torch.no_grad():
        beside = read(model, ids, use="other").nll[:, 1:]
        own = read(model, ids).nll[:, 1:]
    np.testing.assert_allclose(np.stack(scores.nll), beside.numpy(), atol=1e-5)
    assert not torch.allclose(beside, own, atol=1e-2)


def test_other_needs_two_rows():
    with pytest.raises(ValueError, match=r"evaluation.batch_size and evaluation.documents to 2"):
        score(model_of("fifo"), Listed([9, 9]), segment_length=8, batch_size=1, use="other")


def test_documents_without_a_prediction_are_left_out(caplog):
    scores = score(model_of("fifo"), Listed([1, 9]), segment_length=8, batch_size=2)
    assert scores.documents == [1] and scores.tokens == 8
    assert "1 documents of less than two tokens left out" in caplog.text


def test_leaves_modes_and_random_state_alone():
    model = model_of("fifo")
    model.train()
    model.base_model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    score(model, Listed([20, 20]), segment_length=8, batch_size=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_state_bytes_are_those_of_a_full_memory():
    # 3 layers x 12 slots x (2 heads x 8 x (key and value) x 4 bytes + 8 bytes of position)
    scores = score(model_of("fifo"), Listed([40]), segment_length=8, batch_size=1)
    assert scores.state_bytes == 3 * 12 * (2 * 8 * 2 * 4 + 8)


def test_evaluation_leaves_a_training_bank_alone():
    model, documents = model_of("fifo"), Listed([32, 32])
    ids = torch.from_numpy(np.stack(documents.all)).view(2, 4, 8)
    marks = {"starts": torch.zeros(2, 2, dtype=torch.bool), "lengths": torch.full((2, 2), 8)}

    def losses(between):
        _, bank, _ = run(model, MemoryBank.empty(2), ids[:, :2], **marks)
        between()
        hidden, _, _ = run(model, bank, ids[:, 2:], **marks)
        return token_nll(model.get_output_embeddings()(hidden[:, :, :-1]), ids[:, 2:, 1:])

    def evaluate():
        score(model, Listed(LENGTHS), segment_length=8, batch_size=2)

    assert torch.equal(losses(evaluate), losses(lambda: None))


def test_sample_is_evenly_spaced_and_cut():
    documents = Listed([10] * 7)
    sample = Sample(documents, 3, 4)
    assert sample.index == [0, 2, 4]
    assert [sample.name(i) for i in range(3)] == ["document-0", "document-2", "document-4"]
    assert [sample.length(i) for i in range(3)] == [4, 4, 4]
    assert np.array_equal(sample.ids(1), documents.ids(2)[:4])
    whole = Sample(documents, None, None)
    assert whole.index == list(range(7)) and whole.length(6) == 10
    assert len(Sample(documents, 99, None)) == 7
