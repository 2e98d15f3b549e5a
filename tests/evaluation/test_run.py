import json
import math

import numpy as np
import pytest
import torch
from evaluation.corpora import Listed, make_corpus
from helpers.models import make_memory, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from unimem import attach, compose, read
from unimem.data.build import build_corpus
from unimem.evaluation.run import LEAK, PROTOCOL, evaluate_all
from unimem.evaluation.tokens import TokenTable
from unimem.settings import EvaluationSettings

FIFO = {"management": {"fifo": {"size": 16}}, "injection": {"layers": [1]}, "positions": "zero"}
VANILLA = {"management": {"none": {}}, "reading": {"none": {}}, "injection": {"none": {}}}


def settings(**values):
    given = {
        "batch_size": 2,
        "documents": None,
        "max_tokens": None,
        "controls": True,
        "age_documents": 0,
        "segments_per_call": 2,
    }
    return EvaluationSettings(**(given | values))


def evaluate(model, corpus, folder, **values):
    result = evaluate_all(
        model, corpus, segment_length=8, settings=settings(**values), folder=folder
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


def test_numbers_are_those_of_the_tokens(tmp_path):
    documents = Listed([30, 5, 41])
    token_bytes = np.arange(61) + 1
    model = attach(make_model(), make_memory(8, **FIFO))
    result = evaluate(model, make_corpus(documents, token_bytes=token_bytes), tmp_path)
    with torch.no_grad():
        each = [read(model, torch.from_numpy(ids)[None]).nll[0, 1:] for ids in documents.all]
    nll = torch.cat(each).double()
    own = result["scores"]["own"]
    assert (result["protocol"], result["documents"], result["tokens"]) == (PROTOCOL, 3, 73)
    assert own["nll"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert own["perplexity"] == pytest.approx(math.exp(own["nll"]), rel=1e-4)
    size = sum(token_bytes[ids[1:]].sum() for ids in documents.all)
    assert result["bytes"] == size
    bits = nll.sum().item() / math.log(2) / size
    assert own["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    off = result["comparisons"]["own-off"]
    scores = result["scores"]
    assert off["difference"] == pytest.approx(own["nll"] - scores["off"]["nll"], abs=1e-4)
    assert set(scores) == {"own", "off", "other"} and result["bounds"] == {}

    table = TokenTable.load(tmp_path)
    assert table.names.tolist() == ["document-0", "document-1", "document-2"]
    np.testing.assert_allclose(table.columns["own"], nll.numpy(), atol=1e-5)
    first = table.between(0, 8)
    assert np.bincount(first.document).tolist() == [8, 4, 8]
    # Without anything remembered yet, memory makes no difference.
    np.testing.assert_allclose(first.columns["own"], first.columns["off"], atol=1e-6)
    curve = result["by_position"]
    assert curve["edges"] == [0, 8, 16, 24, 32, 40] and curve["documents"] == [3, 2, 2, 2, 1]
    assert curve["own"]["mean"][0] == pytest.approx(first.columns["own"].mean(), rel=1e-5)


def test_memory_that_was_never_read_is_a_warning_of_the_record(tmp_path, caplog):
    caplog.set_level("INFO")
    model = attach(make_model(), make_memory(8, **FIFO))
    result = evaluate(model, make_corpus(Listed([8, 5, 7])), tmp_path, documents=9)
    never, same = result["warnings"]
    assert "memory is never read: no held-out document is longer than a segment" in never
    assert "memory made no difference: with memory own, off and other" in same
    assert result["leak"] is False
    assert evaluate(model, make_corpus(Listed([30, 41])), tmp_path)["warnings"] == []
    assert "evaluation.documents=9, but there are 3 held-out documents" in caplog.text


def test_ages_are_those_of_a_few_documents(tmp_path):
    corpus = make_corpus(Listed([30, 5, 41, 24]))
    fifo = attach(make_model(), make_memory(8, **FIFO))
    assert evaluate(fifo, corpus, tmp_path)["ages"] is None
    ages = evaluate(fifo, corpus, tmp_path, age_documents=2)["ages"]
    # Documents 0 and 2 of 4; 16 slots of layer 1, 1 to 23 tokens away.
    assert ages["documents"] == 2 and ages["edges"] == [1, 9, 17, 33]
    assert list(ages["share"]) == ["1"] and 8 < sum(ages["slots"]["1"]) < 16
    vanilla = attach(make_model(), make_memory(8, **VANILLA))
    assert evaluate(vanilla, corpus, tmp_path, age_documents=2)["ages"] is None


def test_controls_are_left_out_by_name(tmp_path):
    corpus = make_corpus(Listed([20, 20]))
    vanilla = attach(make_model(), make_memory(8, **VANILLA))
    result = evaluate(vanilla, corpus, tmp_path)
    assert set(result["scores"]) == {"own"}
    assert result["skipped"] == {"controls": "the method has no memory"}
    fifo = attach(make_model(), make_memory(8, **FIFO))
    assert evaluate(fifo, corpus, tmp_path, controls=False)["skipped"] == {}
    alone = evaluate(fifo, corpus, tmp_path, batch_size=1)
    assert set(alone["scores"]) == {"own", "off"}
    assert "evaluation.batch_size" in alone["skipped"]["other"]


def test_documents_and_max_tokens_say_what_is_read(tmp_path):
    model = attach(make_model(), make_memory(8, **FIFO))
    result = evaluate(
        model, make_corpus(Listed([20] * 6)), tmp_path, documents=3, max_tokens=11, controls=False
    )
    assert (result["documents"], result["tokens"]) == (3, 30)
    assert TokenTable.load(tmp_path).names.tolist() == ["document-0", "document-2", "document-4"]


@pytest.fixture(scope="module")
def markov():
    return build_corpus(compose("data=markov", "data.validation_documents=24").data)


def test_bounds_are_the_oracles(markov, tmp_path):
    oracle = markov.oracle
    documents = markov.validation
    model = attach(make_model(), make_memory(8, **FIFO))
    result = evaluate(model, markov, tmp_path, max_tokens=100)
    for name, memory in {"none": 0, "memory": 16, "unlimited": None}.items():
        nll = [oracle.nll(documents.ids(i)[:100], 8, memory)[1:] for i in range(24)]
        assert result["bounds"][name]["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert result["leak"] is False and result["warnings"] == []
    unbounded = attach(make_model(), make_memory(8))
    bounds = evaluate(unbounded, markov, tmp_path, max_tokens=100)["bounds"]
    assert set(bounds) == {"none", "unlimited"}


PINNED = {"pinned_fifo": {"size": 16, "num_pinned": 3}}
POOLED = {"recompress": {"size": 10, "compressed_size": 3, "rate": 4}}


@pytest.mark.parametrize(
    ("choices", "tokens"),
    [
        ({"management": PINNED}, 19),
        ({"management": POOLED}, 10 + 3 + 3 * 4),
        ({"management": POOLED | {"recompress": POOLED["recompress"] | {"compressed_size": None}}},
         None),
        ({"management": {"unbounded": {}}}, None),
        ({"management": {"fifo": {"size": 4}}, "writing": {"pooling": {"rate": 4}}}, 16),
        ({"management": {"fifo": {"size": 30}}, "writing": {"landmark": {"block_size": 4}},
          "fusion": "grouped", "bptt_segments": 1}, 24),
        ({"management": {"fifo": {"size": 4}},
          "writing": {"summary_tokens": {"num_summary": 2}},
          "bptt_segments": 1}, 16),
        ({"management": {"fifo": {"size": [16, 40, 8]}}, "injection": {"all": {}}}, 40),
    ],
)  # fmt: skip
def test_slots_stand_for_so_many_tokens(choices, tokens):
    memory = make_memory(8, **(FIFO | choices))
    found = [layer.most_tokens(8) for layer in memory.plan(3).layers.values()]
    assert (None if None in found else max(found)) == tokens


def test_a_bound_counts_pinned_slots_and_not_what_soft_tokens_carry(markov, tmp_path):
    model = attach(make_model(), make_memory(8, **(FIFO | {"management": PINNED})))
    result = evaluate(model, markov, tmp_path, max_tokens=60, controls=False)
    nll = [markov.oracle.nll(markov.validation.ids(i)[:60], 8, 19)[1:] for i in range(24)]
    assert result["bounds"]["memory"]["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    soft = {"writing": {"direct": {}, "model_forward": {"num_soft_tokens": 2}}}
    soft |= {"injection": {"layers": [1], "input": {}}, "bptt_segments": 1}
    attach(model, make_memory(8, **(FIFO | soft)))
    bounds = evaluate(model, markov, tmp_path, max_tokens=60, controls=False)["bounds"]
    assert set(bounds) == {"none", "unlimited"}


class Head(torch.nn.Module):
    """Gives each token of the documents, read in one row, a loss that was laid down."""

    def __init__(self, documents, nll):
        super().__init__()
        self.segments = iter(
            (torch.from_numpy(target), torch.from_numpy(loss))
            for i in range(len(documents))
            for target, loss in zip(
                np.append(documents.ids(i)[1:], 0).reshape(-1, 8),
                np.append(nll(documents.ids(i)), 1).reshape(-1, 8),
                strict=True,
            )
        )

    def forward(self, hidden):
        target, loss = next(self.segments)
        rest = (-torch.expm1(-loss) / 7).log()[:, None].expand(-1, 8)
        return rest.scatter(1, target[:, None], -loss[:, None])[None]


class Fixed(LlamaForCausalLM):
    def __init__(self, documents, nll):
        super().__init__(
            LlamaConfig(
                vocab_size=8,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=2,
                num_attention_heads=1,
                num_key_value_heads=1,
            )
        )
        self.fixed = Head(documents, nll)

    def get_output_embeddings(self):
        return self.fixed


@pytest.mark.parametrize(("choices", "bound"), [(VANILLA, "bound_none"), (FIFO, "bound_unlimited")])
def test_a_model_below_its_bound_is_called_a_leak(markov, tmp_path, choices, bound, caplog):
    model = Fixed(markov.validation, lambda ids: np.full(len(ids) - 1, 0.4))
    attach(model, make_memory(8, **choices))
    result = evaluate(model, markov, tmp_path, batch_size=1, controls=False)
    assert result["leak"] is True
    (warning,) = result["warnings"]
    assert warning in caplog.text and LEAK in warning and bound in warning


@pytest.mark.parametrize(
    ("choices", "memory"),
    [
        pytest.param(VANILLA, 0, marks=pytest.mark.slow),
        (FIFO, 16),
        pytest.param({}, None, marks=pytest.mark.slow),
    ],
)
def test_the_best_possible_model_is_no_leak(markov, tmp_path, choices, memory):
    model = Fixed(markov.validation, lambda ids: markov.oracle.nll(ids, 8, memory)[1:])
    attach(model, make_memory(8, **choices))
    result = evaluate(model, markov, tmp_path, batch_size=1, controls=False)
    name = {0: "none", 16: "memory", None: "unlimited"}[memory]
    assert result["scores"]["own"]["nll"] == pytest.approx(result["bounds"][name]["nll"], rel=1e-4)
    assert result["leak"] is False
