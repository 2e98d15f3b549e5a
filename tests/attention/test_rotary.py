"""Position schemes against their definitions, key by key."""

import copy
import pickle

import pytest
import torch
from helpers.models import make_memory, make_model, tokens

from unimem.attention.rotary import Frame, IdentityRotary, apply_rotary
from unimem.memory.reading.base import View
from unimem.memory.registry import option_class
from unimem.memory.state import Memory
from unimem.model.attach import attach
from unimem.model.segments import read


@pytest.mark.parametrize("scheme", ["zero", "true", "capped", "none"])
def test_scheme_is_the_rotation_by_its_distance(scheme):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    keys = torch.randn(2, 2, 7, 8, generator=generator)
    rotary = make_model().base_model.rotary_emb

    def table(index):
        return rotary(query, index)

    start = torch.tensor([40, 19])  # where the segment begins in its document
    positions = start[:, None] + torch.arange(-14, 0, 2)
    index = torch.arange(5)[None]
    places = start[:, None] + index
    frame = Frame(table, index, places, -start[:, None], 6, index >= 0)
    memory = Memory(keys, keys, positions)
    found = option_class("positions", scheme)().score(query, keys, memory, frame, None)

    for b in range(2):
        for i in range(5):
            for m in range(7):
                true = int(places[b, i] - positions[b, m])
                distance = {"zero": i, "true": true, "capped": min(true, 6), "none": 0}[scheme]
                rotated = apply_rotary(
                    query[b : b + 1, :, i : i + 1], table(torch.tensor([[distance]]))
                )
                still = apply_rotary(keys[b : b + 1, :, m : m + 1], table(torch.tensor([[0]])))
                expected = (rotated * still.repeat_interleave(2, 1)).sum(-1).flatten()
                torch.testing.assert_close(found[b, :, i, m], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gain", [1, 1.3])
@pytest.mark.parametrize("scheme", ["zero", "true", "capped", "none"])
def test_cosines_are_of_vectors_as_attention_turns_them(scheme, gain):
    """Whatever a model multiplies its rotary table by; under `none` nothing is turned."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 5, 8, generator=generator)
    keys = torch.randn(1, 4, 7, 8, generator=generator)
    rotary = make_model().base_model.rotary_emb

    def table(index):
        return tuple(gain * part for part in rotary(query, index))

    places = 40 + torch.arange(5)[None]
    index = places - 40
    frame = Frame(table, index, places, torch.tensor([[-40]]), 6, index >= 0, gain == 1)
    memory = Memory(keys, keys, 33 + torch.arange(7)[None])
    positions = option_class("positions", scheme)()
    taken = torch.zeros(1, 4, 5, 7, dtype=torch.bool)
    view = View(
        memory=memory, query=query, frame=frame, positions=positions, taken=taken, logits=None,
        layer=0,
    )  # fmt: skip
    across, along = (x.square().sum(-1).sqrt() for x in (query, keys))
    expected = positions.score(query, keys, memory, frame) / gain**2
    expected = expected / across[..., None] / along[:, :, None]
    torch.testing.assert_close(view.cosines(), expected)
    if scheme == "none":
        plain = torch.cosine_similarity(query[..., :, None, :], keys[..., None, :, :], dim=-1)
        torch.testing.assert_close(view.cosines(), plain)


def test_stingy_places_for_the_choice_and_for_what_was_chosen():
    """Four blocks of two tokens, of which the two newest have places for the choice."""
    scheme = option_class("positions", "stingy")(topk_blocks=2, block_size=2)
    keys = torch.zeros(1, 1, 8, 8)
    memory = Memory(keys, keys, torch.arange(8)[None])
    places = 8 + torch.arange(3)[None]
    frame = Frame(lambda index: None, places - 8, places, -places[:, :1], 3, places > 0)
    (rotate,) = scheme.rotations(memory, frame)
    assert rotate.keys.tolist() == [[0, 1, 0, 1, 2, 3, 4, 5]]
    assert rotate.queries.tolist() == [[6, 7, 8]]

    def stands(*chosen):
        block = torch.arange(8) // 2
        visible = torch.isin(block, torch.tensor(chosen)).expand(1, 1, 1, 8)
        found = {}
        for rotate in scheme.rotations(memory, frame, visible):
            assert rotate.queries.tolist() == [[6, 7, 8]]
            for slot in (rotate.where & visible)[0, 0, 0].nonzero()[:, 0].tolist():
                found[slot] = int(rotate.keys[0, slot])
        return found

    assert stands(0, 1) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert stands(0, 2) == {0: 0, 1: 1, 4: 4, 5: 5}
    assert stands(1, 3) == {2: 0, 3: 1, 6: 4, 7: 5}
    assert stands(2, 3) == {4: 2, 5: 3, 6: 4, 7: 5}
    assert stands(0, 1, 3) == {0: -2, 1: -1, 2: 0, 3: 1, 6: 4, 7: 5}


CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double().float(),
    "within": lambda model: model.model.rotary_emb.half() and model,
    "again": lambda model: model.half().to(torch.bfloat16),
    "copy": lambda model: copy.deepcopy(model.half()).bfloat16(),
    "pickle": lambda model: pickle.loads(pickle.dumps(model.half())).bfloat16(),
    "meta": lambda model: model.to("meta").bfloat16().to_empty(device="cpu"),
}


def same_frequencies(rotary, expected):
    found = dict(rotary.named_buffers())
    assert found.keys() == expected.keys() and len(found) > 0
    for name, buffer in found.items():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, expected[name])


@pytest.mark.parametrize("cast", CASTS)
def test_no_cast_of_the_model_rounds_the_frequencies(cast):
    model = attach(make_model(), make_memory(8))
    expected = {k: v.clone() for k, v in model.model.rotary_emb.inner.named_buffers()}
    model = CASTS[cast](model)
    same_frequencies(model.model.rotary_emb.inner, expected)
    assert not any("rotary" in name for name in model.state_dict())


def test_frequencies_rounded_before_are_computed_anew():
    expected = dict(make_model().model.rotary_emb.named_buffers())
    rounded = make_model().bfloat16()
    assert rounded.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    same_frequencies(attach(rounded, make_memory(8)).model.rotary_emb.inner, expected)


def test_frequencies_move_with_the_model():
    rotary = IdentityRotary(make_model().model.rotary_emb).to("meta")
    assert all(buffer.is_meta for buffer in rotary.buffers())
    assert all(buffer.dtype == torch.float32 for buffer in rotary.half().buffers())


def test_cast_and_loaded_in_bfloat16_read_alike(tmp_path):
    model, ids = make_model(), tokens(1, 200)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = attach(model, make_memory(40)).bfloat16()
    assert torch.equal(read(cast, ids).logits, read(attach(loaded, make_memory(40)), ids).logits)
