"""Every backend's gradients against the reference."""

import copy
from itertools import product
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unimem.bench.bank import filled_bank
from unimem.bench.inputs import Clustered
from unimem.bench.settings import BenchSettings
from unimem.bench.shapes import Shape, configured
from unimem.bench.step import make_step
from unimem.model.attach import attach
from unimem.model.load import load_model
from unimem.settings import Backend

DTYPES = (torch.float32, torch.bfloat16)
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def compare_backends(
    settings: BenchSettings, shape: Shape, method: str, slots: int, device: torch.device
) -> list[dict[str, Any]]:
    """Compare each backend's gradients of all weights with those of the float32 reference.

    Errors are norms of the difference relative to the norm. Queries that are rounded to bfloat16
    find other slots here and there: the reference in bfloat16 is the measure for the others. A
    backend that cannot run has the reason in place of an error.
    """
    config = configured(method, shape, size=slots, segment_length=settings.segment_length)
    made = load_model(shape.model(), shape.vocabulary, settings.seed)

    def gradient(dtype: torch.dtype, backend: Backend) -> Tensor:
        moved = cast(nn.Module, copy.deepcopy(made)).to(device, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            model = attach(cast(PreTrainedModel, moved), config.memory, backend=backend)
        return _gradient(model, settings, slots)

    truth = gradient(torch.float32, "reference")
    rows: list[dict[str, Any]] = []
    for dtype, backend in product(DTYPES, BACKENDS):
        error = reason = None
        try:
            found = gradient(dtype, backend)
            error = ((found - truth).norm() / truth.norm()).item()
        except (ValueError, RuntimeError) as failure:
            reason = " ".join(str(failure).split())
        name = str(dtype).removeprefix("torch.")
        rows.append(
            {"method": method, "dtype": name, "backend": backend, "error": error, "reason": reason}
        )
    return rows


def _gradient(model: PreTrainedModel, settings: BenchSettings, slots: int) -> Tensor:
    """Return the gradients of all weights after a full memory, as one vector in float32."""
    bank = filled_bank(model, Clustered(), rows=settings.batch_size, size=slots, seed=settings.seed)
    cast(nn.Module, model).train()
    make_step(model, bank, settings.segment_length, settings.seed + 1).both()
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
