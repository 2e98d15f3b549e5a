"""Every setting of a model's configuration is honoured or refused, never passed over."""

import logging

import pytest
import torch
from helpers.models import FAMILIES, VOCAB, make_memory, tokens
from helpers.small_methods import METHODS, small_memory

from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.segments import read, run
from unimem.model.supported import lift_windows

ROPE = {"rope_theta": 10000.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
LLAMA3 = YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
WINDOW = {"sliding_window": 11, "use_sliding_window": True}


def rope(kind, **more):
    return {"rope_parameters": ROPE | {"rope_type": kind} | more}


HONOURED = {
    "attention_bias": [{"attention_bias": True}],
    "attn_logit_softcapping": [{"attn_logit_softcapping": 5.0}],  # of other families only
    "head_dim": [{"head_dim": 16}],
    "hidden_act": [{"hidden_act": "gelu"}],
    "layer_types": [
        {"layer_types": MIXED, **WINDOW},
        {"layer_types": ["sliding_attention"] * 3, **WINDOW},
    ],
    "max_position_embeddings": [{"max_position_embeddings": 8}],
    "max_window_layers": [{"max_window_layers": 1, **WINDOW}, {"max_window_layers": 0, **WINDOW}],
    "mlp_bias": [{"mlp_bias": True}],
    "num_attention_heads": [{"num_attention_heads": 8}],
    "num_key_value_heads": [{"num_key_value_heads": 1}, {"num_key_value_heads": 4}],
    "output_attentions": [{"output_attentions": False}],
    "pretraining_tp": [{"pretraining_tp": 2}],
    "rms_norm_eps": [{"rms_norm_eps": 0.1}],
    "rope_parameters": [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        rope("linear", factor=3.0),
        rope("llama3", **LLAMA3),
        rope("yarn", **YARN),
        rope("yarn", mscale=2.0, mscale_all_dim=1.0, truncate=False, beta_fast=8.0, **YARN),
        rope("yarn", attention_factor=1.7, **YARN),
    ],
    "rope_scaling": [{"rope_scaling": {"rope_type": "linear", "factor": 3.0}}],
    "rope_theta": [{"rope_theta": 50.0}],
    "sliding_window": [{"sliding_window": w, "use_sliding_window": True} for w in (3, 8, 11, 60)],
    "tie_word_embeddings": [{"tie_word_embeddings": True}],
    "use_cache": [{"use_cache": False}],
    "use_sliding_window": [{"use_sliding_window": False, "max_window_layers": 0}],
}
"""Of each key values of which read and the model's own forward pass must agree."""

REFUSED = {
    "attention_dropout": ({"attention_dropout": 0.1}, r"attention_dropout=0\.1.*set it to 0"),
    "is_causal": ({"is_causal": False}, "is_causal=False is not supported"),
    "rope dynamic": (rope("dynamic", factor=2.0), "rope_type=dynamic is not supported.*yarn"),
    "rope longrope": (rope("longrope", factor=2.0, **LONG), "rope_type=longrope is not supported"),
    "rope proportional": (rope("proportional"), "rope_type=proportional is not supported"),
    "partial_rotary_factor": (
        rope("linear", factor=2.0, partial_rotary_factor=0.5),
        "turns 4 of the 8 numbers of a head",
    ),
}

IRRELEVANT = {
    *("architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id"),
    *("hidden_size", "id2label", "initializer_range", "intermediate_size", "is_encoder_decoder"),
    *("label2id", "model_type", "num_hidden_layers", "output_hidden_states", "pad_token_id"),
    *("problem_type", "return_dict", "transformers_version", "vocab_size"),
}
"""Shapes, tokens, and what says nothing of how a forward pass computes."""


def decoder(family, layers=3, **settings):
    make_config, make = FAMILIES[family]
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCAB, "num_hidden_layers": layers}
    shape |= {"sliding_window": None} if family == "mistral" else {}
    model = make(make_config(**(shape | settings))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(12 if "q_proj" in name or "k_proj" in name else 4)
            else:
                weight.add_(torch.rand(weight.shape) / 2)
    return model.double()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_configuration_is_known(family):
    """A key that a new version of transformers adds belongs into one of the three tables."""
    config = FAMILIES[family][0]()
    keys = {key for key in config.to_dict() if not key.startswith("_")}
    assert keys - HONOURED.keys() - REFUSED.keys() - IRRELEVANT == set()


@pytest.mark.parametrize("key", HONOURED)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_full_context_is_the_models_own_forward_pass(family, key):
    ids = tokens(2, 29)
    for settings in HONOURED[key]:
        model = decoder(family, **settings)
        own = model(ids).logits
        for length in (5, 29):
            found = read(attach(model, make_memory(length)), ids).logits
            error = (found - own).abs().max() / own.abs().max()
            assert error < 1e-5, f"{settings}: {error:.1e}"  # rotary tables are float32


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_segments_cannot_do_is_refused(family, key):
    settings, said = REFUSED[key]
    with pytest.raises(ValueError, match=said):
        attach(decoder(family, **settings), make_memory(8))


def test_layers_of_another_kind_are_refused():
    model = decoder("qwen2")
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"layer_types\[1\]=chunked_attention is not supported"):
        attach(model, make_memory(8))


class Farthest:
    """How far back anything was read of memory."""

    def __init__(self):
        self.distance = 0

    def __call__(self, layer, attention_weights, queries, memory):
        distance = queries[:, None, :, None] - memory.places[:, :, None, :]
        groups = attention_weights.unflatten(1, (distance.shape[1], -1))
        seen = (groups > 0).any(2) & (queries >= 0)[:, None, :, None]
        self.distance = max(self.distance, int(distance.where(seen, 0).max()))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_no_method_reads_farther_than_the_window(method):
    """And the fast form reads what the reference does."""
    memory = small_memory(method, 8)
    model = decoder("mistral", sliding_window=13)

    def hidden(backend, observer=None):
        torch.manual_seed(1)  # soft tokens are drawn
        attach(model, memory, backend)
        bank, shape = MemoryBank.empty(2), ids.shape[:2]
        starts, lengths = torch.zeros(shape, dtype=torch.bool), torch.full(shape, 8)
        return run(model, bank, ids, starts=starts, lengths=lengths, observer=observer)[0]

    observer, ids = Farthest(), tokens(2, 48).view(2, 6, 8)
    try:
        exact = hidden("auto", observer)
    except ValueError as error:
        assert any(o.merges for o in memory.plan(3).layers[1].options)
        assert "sliding_window=13" in str(error) and "merges tokens" in str(error)
        return
    assert observer.distance < 13
    for backend in ("auto", "reference"):
        assert (hidden(backend) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_window_over_memory_is_told(caplog):
    with caplog.at_level(logging.WARNING, "unimem"):
        attach(decoder("llama", sliding_window=7), make_memory(8))
        attach(decoder("mistral"), make_memory(8))
        assert not caplog.records
        layers = {"layer_types": MIXED, "sliding_window": 7, "use_sliding_window": True}
        attach(decoder("qwen3", **layers), make_memory(8, injection={"layers": [0, 2]}))
        assert not caplog.records
        attach(decoder("qwen3", **layers), make_memory(8))
    (line,) = caplog.messages
    assert "layers [1]" in line and "sliding_window=7" in line and "6 tokens back" in line
    assert "model.sliding_window=null" in line


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_lifted_windows_are_a_model_without(family, tmp_path):
    ids = tokens(2, 29)
    narrow = decoder(family, layer_types=["sliding_attention"] * 3, **WINDOW)
    wide = decoder(family)
    before, expected = narrow(ids).logits, wide(ids).logits
    assert not torch.allclose(before, expected)
    assert torch.equal(lift_windows(narrow)(ids).logits, expected)
    narrow.save_pretrained(tmp_path)
    again = type(narrow).from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.allclose(again(ids).logits, expected, rtol=1e-5, atol=1e-5)
