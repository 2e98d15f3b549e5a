"""Devices, precision and Lightning strategy of a run."""

from typing import Any, cast

import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch.distributed.fsdp import MixedPrecision
from transformers import PreTrainedModel

from unimem.model.attach import attached
from unimem.settings import TrainerSettings


def device_type(settings: TrainerSettings) -> str:
    """Return `cuda` or `cpu`. Raises ValueError if a GPU is asked for and there is none."""
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=gpu but torch finds no GPU; use auto or cpu")
    return "cuda" if settings.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def chosen_precision(settings: TrainerSettings) -> str:
    """Return the precision; `auto` is bf16-mixed (float32 weights) on a GPU, float32 elsewhere."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if device_type(settings) == "cuda" else "32-true"


def num_devices(settings: TrainerSettings) -> int:
    """Return the number of processes on each node."""
    if settings.devices != "auto":
        return settings.devices
    return torch.cuda.device_count() if device_type(settings) == "cuda" else 1


def chosen_strategy(settings: TrainerSettings, model: PreTrainedModel) -> Strategy | str:
    """Return Lightning's strategy for the devices; `model` has memory attached."""
    if settings.strategy == "fsdp":
        layers = {type(layer) for layer in cast(Any, model.base_model).layers}
        half = chosen_precision(settings).startswith("bf16")
        kind = torch.bfloat16 if half else torch.float32
        # Lightning would round the rotary frequencies, which are buffers, to bfloat16.
        mixed = MixedPrecision(param_dtype=kind, reduce_dtype=kind, buffer_dtype=torch.float32)
        return FSDPStrategy(auto_wrap_policy=layers, state_dict_type="full", mixed_precision=mixed)
    if settings.strategy == "ddp" or num_devices(settings) * settings.num_nodes > 1:
        # What memory adds to the weights has no gradient in a step that does not read it.
        added = any(True for _ in attached(model).parameters())
        return DDPStrategy(find_unused_parameters=added)
    return "auto"
