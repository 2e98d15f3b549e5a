"""Into a Hugging Face decoder and out again: names, files, and what is refused."""

import pytest
import torch
from helpers.models import FAMILIES, make_memory, make_model, tokens
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from unimem.config import compose
from unimem.model.attach import attach, load_memory, save_memory
from unimem.model.segments import read

GATED_SOFT = {
    "management": {"fifo": {"size": 20}},
    "fusion": "gated",
    "writing": {"direct": {}, "model_forward": {"num_soft_tokens": 3}},
    "injection": {"layers": [1], "input": {}},
    "bptt_segments": 1,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_is_plain_and_memory_lies_beside_it(family, tmp_path):
    ids = tokens(2, 20)
    plain = make_model(family)
    expected = plain(ids).logits
    names = set(plain.state_dict())
    model = attach(plain, make_memory(8, **GATED_SOFT))
    added = set(model.state_dict()) - names
    assert added == {"memory.soft_tokens", "memory.gates.1"}
    with_memory = read(model, ids).logits

    model.save_pretrained(tmp_path)
    save_memory(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(again.state_dict()) == names
    assert torch.equal(again(ids).logits, expected)
    attach(again, make_memory(8, **GATED_SOFT))
    load_memory(again, tmp_path)
    assert torch.equal(read(again, ids).logits, with_memory)


def test_memory_of_another_shape_is_refused(tmp_path):
    model = attach(make_model(), make_memory(8, **GATED_SOFT))
    model.save_pretrained(tmp_path)
    save_memory(model, tmp_path)
    other = GATED_SOFT | {"injection": {"layers": [2], "input": {}}}
    attach(model, make_memory(8, **other))
    with pytest.raises(ValueError, match=r"memory\.safetensors holds.*gates\.1"):
        load_memory(model, tmp_path)


def test_attaching_again_replaces_the_memory():
    ids = tokens(2, 20)
    model = attach(make_model(), make_memory(8, reading={"similarity": {"topk": 2}}))
    fresh = read(attach(make_model(), make_memory(8)), ids).logits
    assert torch.equal(read(attach(model, make_memory(8)), ids).logits, fresh)


def test_the_model_must_be_read_by_segments():
    model = attach(make_model(), make_memory(8))
    with pytest.raises(ValueError, match=r"call unimem\.read\(model, input_ids\)"):
        model(tokens(1, 8))
    with pytest.raises(ValueError, match=r"input_ids must be \[B, N\]"):
        read(model, tokens(1, 8)[0])
    with pytest.raises(ValueError, match="has no memory"):
        read(make_model(), tokens(1, 8))


def test_unfit_models_are_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=11))
    with pytest.raises(ValueError, match="model_type='gpt2' is not supported; choose one of llama"):
        attach(gpt2, make_memory(8))
    with pytest.raises(ValueError, match=r"injection_layer=7 .*3 layers \(0\.\.2\)"):
        attach(make_model(), make_memory(8, injection={"layers": [7]}))
    with pytest.raises(ValueError, match="LlamaModel predicts no tokens; load .*ForCausalLM"):
        attach(make_model().model, make_memory(8))
    with pytest.raises(ValueError, match="attention.backend='fast' is none; choose one of auto"):
        attach(make_model(), make_memory(8), "fast")


class Wrapper(torch.nn.Module):
    """Stands around a model, as peft's does, and hands its attributes on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def get_base_model(self):
        return self.inner


def test_what_is_no_model_or_no_memory_is_told():
    model = attach(make_model(), make_memory(8))
    wrapped = Wrapper(model)
    for call in (lambda: attach(wrapped, make_memory(8)), lambda: read(wrapped, tokens(1, 8))):
        with pytest.raises(TypeError, match=r"Wrapper; give the model inside: .*base_model\(\)"):
            call()
    with pytest.raises(TypeError, match=r"got DataParallel; give the model inside: model.module"):
        read(torch.nn.DataParallel(model), tokens(1, 8))
    with pytest.raises(TypeError, match="got str$"):
        read("model", tokens(1, 8))
    for memory, hint in (({}, "got dict; give unimem.compose"), (compose(), r"cfg\.memory")):
        with pytest.raises(TypeError, match=hint):
            attach(make_model(), memory)
