"""In which precision a run computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

WEIGHTS = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""The type of the weights under a precision without autocast."""


def cast_weights(model: PreTrainedModel, precision: str) -> None:
    """Bring the weights to the type that a `-true` precision means, in place.

    Mixed precision leaves them as they are: autocast casts what it computes with.
    """
    dtype = WEIGHTS.get(precision)
    if dtype is not None and model.dtype != dtype:
        cast(nn.Module, model).to(dtype)


def own_precision(model: PreTrainedModel) -> str:
    """Name the precision that computes in the type of the weights."""
    named = {dtype: precision for precision, dtype in WEIGHTS.items()}
    return named.get(model.dtype, dtype_name(model.dtype))


@contextmanager
def computing(precision: str | None, device: torch.device) -> Iterator[None]:
    """Compute as training at this precision does: under autocast if it is mixed."""
    if precision == "bf16-mixed":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    else:
        yield


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as settings write it: `float32`."""
    return str(dtype).removeprefix("torch.")
