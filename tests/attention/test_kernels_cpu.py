"""PyTorch's flash attention on the CPU, a block of queries at a time and all at once."""

import pytest
import torch
from helpers.kernel_truth import KINDS, check

from unimem.attention.kernels import cpu

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("rows", [1, 5, 128])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_one_softmax(kind, dtype, rows, monkeypatch):
    monkeypatch.setattr(cpu, "ROWS", rows)
    check(cpu.CpuFlash(), kind, dtype, "cpu", TOLERANCE[dtype])


def test_keys_that_no_query_of_a_block_sees_are_left_out(monkeypatch):
    monkeypatch.setattr(cpu, "ROWS", 2)
    bias = torch.full((1, 1, 6, 8), -torch.inf)
    bias[..., 0, 1:3] = bias[..., 1, 2:4] = bias[..., 4, [0, 7]] = 0
    (first, near), (last, far) = cpu._pieces(bias)
    assert (first, near, last) == (slice(0, 2), slice(1, 4), slice(4, 6))
    assert far.tolist() == [0, 7]
