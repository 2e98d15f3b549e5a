"""Position schemes against their definitions, key by key."""

import pytest
import torch
from models import make_model

from unimem.memory.plan import option_class
from unimem.memory.state import Memory
from unimem.model.rotary import Frame, rotate


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
                turned = rotate(query[b : b + 1, :, i : i + 1], table(torch.tensor([[distance]])))
                still = rotate(keys[b : b + 1, :, m : m + 1], table(torch.tensor([[0]])))
                expected = (turned * still.repeat_interleave(2, 1)).sum(-1).flatten()
                torch.testing.assert_close(found[b, :, i, m], expected, atol=1e-4, rtol=1e-4)
