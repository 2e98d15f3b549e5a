"""TinyLLaMA-1.1B on one GPU: tokens a second in training and in evaluation."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from unimem.bench.bank import filled_bank
from unimem.bench.end_to_end import random_document, training_batch, training_step
from unimem.bench.inputs import Clustered
from unimem.bench.roofline import HALF, device_peak
from unimem.bench.settings import BenchSettings
from unimem.bench.shapes import Shape, configured
from unimem.bench.timer import Call, Clock
from unimem.config import Config
from unimem.evaluation.score import score
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.load import load_model
from unimem.training.footprint import num_parameters
from unimem.training.out_of_memory import is_oom


def measure_tokens(
    settings: BenchSettings, shape: Shape, method: str, most_rows: int, device: torch.device
) -> dict[str, Any]:
    """Train with the largest batch that fits, a power of two, and give tokens a second.

    Weights are float32 under bfloat16 autocast, as `unimem-train` does by default on a GPU; memory
    is full. `MFU` is the share of the device's peak if a token takes 6 FLOPs for each parameter and
    12 * layers * width * segment length for attention within its segment: what memory takes counts
    as loss. It is None for a device whose peak is not known here.

    Raises MemoryError if not one row fits.
    """
    config = configured(method, shape, size=None, segment_length=settings.segment_length)
    model = _model(shape, config, settings, device, torch.float32).train()
    clock = Clock(device=device, threads=settings.threads)
    size = config.memory.flat().get("memory.size", 0)
    with torch.autocast(device.type, HALF):
        bank = filled_bank(model, Clustered(), rows=1, size=size, seed=settings.seed, dtype=HALF)
    fits, rows = 0, 1
    while rows <= most_rows and _fits(_training_of(model, config, bank, rows, settings.seed)):
        fits, rows = rows, 2 * rows
    if not fits:
        raise MemoryError(f"not one row of {method} fits")
    step = _training(model, config, bank, fits, settings.seed)
    seconds = min(clock.in_turn({"step": step}, settings.repeats)["step"])
    tokens = fits * config.segments_per_step() * settings.segment_length
    held = clock.peak_bytes(step)
    peak = device_peak(device)
    flops = tokens * flops_per_token(model, settings.segment_length)
    return {
        "method": method,
        "rows": fits,
        "tokens a step": tokens,
        "tokens/s": round(tokens / seconds),
        "ms": seconds * 1e3,
        "MFU": None if peak is None else flops / seconds / peak.flops,
        "activations GB": None if held is None else held / 1e9,
    }


def flops_per_token(model: PreTrainedModel, context: int) -> float:
    """Return the FLOPs that training takes for a token, attention over `context` tokens counted."""
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * context
    return 6 * num_parameters(model) + attention


def measure_documents(
    settings: BenchSettings,
    shape: Shape,
    method: str,
    documents: tuple[int, ...],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Evaluate documents of so many tokens in bfloat16, one after the other."""
    config = configured(method, shape, size=None, segment_length=settings.segment_length)
    model = _model(shape, config, settings, device, HALF)
    clock = Clock(device=device, threads=settings.threads)

    def read(tokens: int) -> Call:
        document = random_document(model, tokens, settings.seed)
        length, several = settings.segment_length, config.evaluation.segments_per_call
        return lambda: score(
            model, document, segment_length=length, batch_size=1, segments_per_call=several
        )

    read(2 * settings.segment_length)()
    rows: list[dict[str, Any]] = []
    for tokens in documents:
        seconds: list[float] = []
        call = read(tokens)
        peak = clock.peak_bytes(lambda c=call, s=seconds: s.append(clock.seconds(c)))
        rows.append(
            {
                "method": method,
                "tokens": tokens,
                "seconds": seconds[0],
                "tokens/s": round(tokens / max(seconds[0], 1e-9)),
                "peak GB above weights": None if peak is None else peak / 1e9,
            }
        )
    return rows


def _model(
    shape: Shape,
    config: Config,
    settings: BenchSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    made = load_model(shape.model(), shape.vocabulary, settings.seed)
    moved = cast(PreTrainedModel, cast(nn.Module, made).to(device, dtype))
    return attach(moved, config.memory, backend=settings.backend)


def _training(
    model: PreTrainedModel, config: Config, bank: MemoryBank, rows: int, seed: int
) -> Call:
    """Return the call of a training step of so many rows, which all remember the same."""
    same = bank.rows(torch.zeros(rows, dtype=torch.long, device=model.device))
    batch = training_batch(model, rows, config.segments_per_step(), seed)
    return training_step(model, config, same, batch, HALF)


def _training_of(
    model: PreTrainedModel, config: Config, bank: MemoryBank, rows: int, seed: int
) -> Call:
    """Return the call that also makes what a training step of so many rows needs."""
    return lambda: _training(model, config, bank, rows, seed)()


def _fits(call: Call) -> bool:
    """Whether there is memory for a call."""
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        fits = False
    else:
        fits = True
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits
