"""How Lightning is told to spread a run."""

import pytest
import torch
from helpers.models import make_memory, make_model

from unimem.config import compose
from unimem.model.attach import attach
from unimem.training.devices import chosen_strategy


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_fsdp_leaves_rotary_frequencies_in_float32(precision):
    settings = compose("trainer.strategy=fsdp", f"trainer.precision={precision}").trainer
    strategy = chosen_strategy(settings, attach(make_model(), make_memory(8)))
    mixed = strategy.mixed_precision_config
    assert mixed.buffer_dtype == torch.float32
    half = precision.startswith("bf16")
    assert mixed.param_dtype == mixed.reduce_dtype == (torch.bfloat16 if half else torch.float32)
