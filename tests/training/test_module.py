"""The loss is the model's own on its documents, whatever the batches."""

import pytest
import torch
from helpers.models import make_memory, make_model, tokens
from helpers.sampled import each
from helpers.small_methods import METHODS, SMALL, small_memory
from torch.nn.functional import pad

from unimem.config import compose
from unimem.data.stream import NO_TARGET, SegmentBatch, SegmentStream
from unimem.model.attach import attach
from unimem.model.segments import read
from unimem.training.module import FSDP_PREFIX, LitUniMem, NonFiniteLossError


class Texts:
    """Documents of unequal lengths."""

    def __init__(self, *lengths: int):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def length(self, i):
        return self.lengths[i]

    def ids(self, i):
        return tokens(1, self.lengths[i], seed=i)[0].numpy()

    def name(self, i):
        return f"text {i}"


def stream(texts, **more):
    options = {"batch_size": 2, "segment_length": 8, "segments_per_step": 2, "seed": 0}
    return SegmentStream(texts, **(options | {"steps": None, "shuffle": False} | more))


def lit(*overrides, **memory) -> LitUniMem:
    model = attach(make_model(), make_memory(**memory)).train()
    return LitUniMem(model, compose(*overrides).trainer)


def test_steps_sum_to_the_loss_of_whole_documents():
    texts, module = Texts(37, 16, 50, 9), lit()
    outputs = [module.training_step(batch, i) for i, batch in enumerate(stream(texts))]
    nll = sum(output["nll"] for output in outputs)
    count = sum(output["tokens"] for output in outputs)
    ids = [torch.from_numpy(texts.ids(i))[None] for i in range(len(texts))]
    expected = sum(read(module.model, text).nll[0, 1:].sum() for text in ids)
    assert count == 37 + 16 + 50 + 9 - 4
    assert nll.item() == pytest.approx(expected.item(), rel=1e-5)
    for output in outputs:
        assert output["loss"].item() == pytest.approx((output["nll"] / output["tokens"]).item())


def test_bank_passes_between_steps_without_gradient():
    module = lit()
    for i, batch in enumerate(stream(Texts(48, 48))):
        module.training_step(batch, i)["loss"].backward()
        assert module.bank is not None
        assert not any(m.keys.requires_grad for m in module.bank.layers.values())
    assert module.bank.position.tolist() == [48, 48]


def test_batch_without_targets_has_no_loss_and_no_nan():
    module = lit()
    (batch,) = stream(Texts(8, 8), segments_per_step=1)
    output = module.training_step(batch._replace(targets=torch.full_like(batch.targets, -100)), 0)
    assert output["loss"] == 0 and output["tokens"] == 0


def test_vectors_soft_tokens_and_gates_do_not_decay():
    soft = {"model_forward": {"num_soft_tokens": 2, "soft_segments": 1, "seed_read": True}}
    both = {"injection": {"all": {}, "input": {}}, "fusion": "gated", "bptt_segments": 1}
    module = lit("trainer.weight_decay=0.3", writing={"direct": {}, **soft}, **both)
    decayed, spared = module.configure_optimizers()["optimizer"].param_groups
    names = {id(p): n for n, p in module.model.named_parameters()}
    assert decayed["weight_decay"] == 0.3 and spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    for p in spared["params"]:
        name = names[id(p)]
        assert "norm" in name or name.startswith(("memory.soft_tokens", "memory.gates"))
    assert all(p.ndim == 2 and "memory" not in names[id(p)] for p in decayed["params"])


def test_what_decays_is_known_before_weights_are_flattened():
    """As FSDP does, which shards each layer as one vector and puts a prefix into the names."""

    def groups(module):
        names = {id(p): n for n, p in module.model.named_parameters()}
        found = module.configure_optimizers()["optimizer"].param_groups
        cleaned = [[names[id(p)].replace(FSDP_PREFIX, "") for p in g["params"]] for g in found]
        return cleaned, [g["weight_decay"] for g in found]

    class Wrapped(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self._fsdp_wrapped_module = layer

    expected = groups(lit())
    module = lit()
    layers = module.model.model.layers
    for i, layer in enumerate(list(layers)):
        layers[i] = Wrapped(layer)
    for weight in module.parameters():
        weight.data = weight.data.flatten()
    assert groups(module) == expected
    assert len(expected[0][0]) > 10 and expected[1] == [0.1, 0.0]


def test_state_of_the_module_is_the_weights_alone():
    module = lit()
    assert {k.removeprefix("model.") for k in module.state_dict()} == {*module.model.state_dict()}


def test_loss_that_is_not_finite_is_named_and_leaves_the_bank():
    module = lit()
    first, second = list(stream(Texts(40, 40)))[:2]
    module.training_step(first, 0)
    bank = module.bank
    with torch.no_grad():
        module.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 1, documents \[0, 1\]"):
        module.training_step(second, 1)
    assert module.bank is bank


@pytest.mark.parametrize("method", each(3, METHODS))
def test_padding_that_is_not_computed_changes_no_loss(method):
    """Segments far longer than the documents give the losses of padded ones, training or not."""
    texts = Texts(9, 14, 5, 14, 11)
    limit = ["memory.limit=20"] if "limit" in str(SMALL[method].overrides) else []
    model = attach(make_model(), small_memory(method, 16, *limit)).train()
    trimmed, whole = (LitUniMem(model, compose().trainer) for _ in range(2))
    for i, batch in enumerate(stream(texts, segment_length=16)):
        shape = batch.input_ids.shape
        assert shape[2] == batch.lengths.max() < 16
        more = (0, 16 - shape[2])
        text = pad(batch.input_ids, more), pad(batch.targets, more, value=NO_TARGET)
        padded = SegmentBatch(*text, *batch[2:])
        found, expected = trimmed.training_step(batch, i), whole.training_step(padded, i)
        assert found["tokens"] == expected["tokens"]
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
