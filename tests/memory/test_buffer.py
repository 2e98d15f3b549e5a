"""A memory that grows in place is still a value."""

import pytest
import torch

from unimem.memory.bank import MemoryBank
from unimem.memory.state import Memory


def slots(count, first=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 2, count, 4, generator=generator) for _ in range(2))
    return Memory(keys, values, torch.arange(first, first + count).expand(2, -1))


def grown(multiplicity, size=None):
    memory = Memory.empty(torch.zeros(2, 2, 1, 4))
    every = []
    for i in range(multiplicity):
        memory = memory.append(slots(7, 7 * i, seed=i))
        memory = memory if size is None else memory.last(size)
        every.append(memory)
    return every


@pytest.mark.parametrize("size", [None, 500])
def test_growing_in_place_is_appending(size):
    with torch.no_grad():
        memories = grown(400, size)
    copied = grown(400, size)  # with gradient there is no room
    assert all(memory.buffer is None for memory in copied)
    for mine, plain in zip(memories, copied, strict=True):
        assert torch.equal(mine.keys, plain.keys)
        assert torch.equal(mine.values, plain.values)


def test_slots_are_copied_a_few_times_only():
    with torch.no_grad():
        rooms = [id(memory.buffer) for memory in grown(3000)]
    assert len(set(rooms)) < 20


def test_two_memories_that_grow_out_of_one_do_not_meet():
    with torch.no_grad():
        *_, old = grown(3)
        one, other = old.append(slots(5, 21, seed=8)), old.append(slots(5, 21, seed=9))
    assert torch.equal(one.keys[:, :, 21:], slots(5, seed=8).keys)
    assert torch.equal(other.keys[:, :, 21:], slots(5, seed=9).keys)


def test_growing_leaves_what_a_backward_pass_kept_alone():
    with torch.no_grad():
        *_, memory = grown(3)
    query = torch.randn(2, 2, 1, 4, requires_grad=True)
    score = (query @ memory.keys.mT).sum()
    with torch.no_grad():
        memory.append(slots(5))
    score.backward()
    torch.testing.assert_close(query.grad, memory.keys.sum(2, keepdim=True))


def test_inference_mode_and_back():
    with torch.inference_mode():
        *_, memory = grown(2)
    with torch.no_grad():
        assert torch.equal(memory.append(slots(3)).keys[:, :, :14], memory.keys)


def test_a_saved_memory_has_no_room():
    with torch.no_grad():
        *_, memory = grown(2)
    saved = MemoryBank(torch.zeros(2), {0: memory}).state_dict()["layers"][0]
    for name in ("keys", "values"):
        assert saved[name].untyped_storage().nbytes() == 4 * saved[name].numel()
        assert torch.equal(saved[name], getattr(memory, name))
