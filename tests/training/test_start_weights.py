"""Memory weights that lie beside the model that a run starts from."""

import logging

import pytest
import torch
from helpers.models import make_memory, make_model

from unimem.config import compose
from unimem.model.attach import attach, attached, save_memory
from unimem.training.start_weights import load_start_weights

SOFT = {
    "writing": {"direct": {}, "model_forward": {"num_soft_tokens": 3}},
    "injection": {"layers": [0, 1], "input": {}},
    "bptt_segments": 1,
}


@pytest.fixture
def base(tmp_path):
    """The folder of a model whose memory has soft tokens and gates, all of them 7."""
    model = attach(make_model(), make_memory(fusion="gated", **SOFT))
    with torch.no_grad():
        for weight in attached(model).parameters():
            weight.fill_(7)
    model.save_pretrained(tmp_path)
    save_memory(model, tmp_path)
    return compose("model=hf", f"model.name={tmp_path}", "injection_layer=0").model


def started(settings, trains=True, **memory):
    model = attach(make_model(), make_memory(**memory))
    load_start_weights(model, settings, trains=trains)
    return {name: set(w.flatten().tolist()) for name, w in attached(model).named_parameters()}


@pytest.mark.parametrize("trains", [True, False])
def test_weights_that_fit_are_taken_over(base, trains):
    found = started(base, trains, fusion="gated", **SOFT)
    assert found == {"soft_tokens": {7.0}, "gates.0": {7.0}, "gates.1": {7.0}}


def test_what_does_not_fit_starts_anew_and_a_line_says_so(base, caplog):
    other = SOFT | {"writing": {"direct": {}, "model_forward": {"num_soft_tokens": 2}}}
    with caplog.at_level(logging.INFO):
        found = started(
            base, fusion="gated", **other | {"injection": {"layers": [1, 2], "input": {}}}
        )
    assert found["gates.1"] == {7.0} and found["gates.2"] == {-2.0}
    assert 7.0 not in found["soft_tokens"]
    assert "soft_tokens, gates.2 start anew" in caplog.text
    assert "['gates.0'] of" in caplog.text and "are not used" in caplog.text


def test_what_was_not_trained_cannot_be_read_with(base):
    other = SOFT | {"writing": {"direct": {}, "model_forward": {"num_soft_tokens": 2}}}
    with pytest.raises(
        ValueError, match=r"needs \{'soft_tokens': \[2, 32\]\} and .* holds .*\[3, 32"
    ):
        started(base, trains=False, **other)


def test_less_memory_can_be_read_with(base):
    assert started(base, trains=False) == {}


def test_memory_that_nobody_trained_is_told_where_nothing_trains(tmp_path, caplog):
    make_model().save_pretrained(tmp_path)
    settings = compose("model=hf", f"model.name={tmp_path}", "injection_layer=0").model
    with caplog.at_level(logging.WARNING):
        started(settings, trains=True, fusion="gated", **SOFT)
        started(settings, trains=False)
        assert not caplog.records
        started(settings, trains=False, fusion="gated", **SOFT)
    (line,) = caplog.messages
    assert "trainer.max_steps=0" in line and "never trained (soft_tokens, gates.0, gates.1)" in line


def test_a_model_without_memory_beside_it_starts_anew(tmp_path):
    make_model().save_pretrained(tmp_path)
    settings = compose("model=hf", f"model.name={tmp_path}", "injection_layer=0").model
    assert started(settings, trains=False, fusion="gated")["gates.0"] == {-2.0}
    assert started(compose().model, fusion="gated")["gates.0"] == {-2.0}
