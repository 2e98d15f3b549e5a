"""Memory that waits elsewhere is the same memory."""

import pytest
import torch
from helpers.models import make_model, tokens
from helpers.small_methods import small_memory

from unimem.model.attach import attach
from unimem.model.segments import read


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["unimix", "h2o", "compressive_transformer", "infini_attention"])
def test_offloading_changes_no_number(method):
    found = []
    for device in ("model", "cpu"):
        model = attach(make_model(), small_memory(method, 8, f"memory.device={device}")).train()
        out = read(model, tokens(2, 45))
        out.nll[:, 1:].sum().backward()
        found.append((out.nll[:, 1:], gradients(model)))
    (nll, grads), (other_nll, other_grads) = found
    assert torch.equal(nll, other_nll)
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)
