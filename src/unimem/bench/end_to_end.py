"""What a whole model does with memory and without: a training step, a document.

Shapes: B rows, S segments, T tokens of a segment.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from unimem.bench.bank import random_ids
from unimem.bench.step import megabytes
from unimem.bench.timer import Call, Clock, compared
from unimem.config import Config
from unimem.data.stream import NO_TARGET, SegmentBatch
from unimem.evaluation.score import score
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attached

ROUNDS = 2
"""Times at most that a document is read."""


def training_batch(model: PreTrainedModel, rows: int, segments: int, seed: int) -> SegmentBatch:
    """Return S segments of B documents that began earlier, the same for the same seed."""
    length, device = attached(model).plan.segment_length, model.device
    ids = random_ids(model.config.vocab_size, rows, segments * length, seed=seed).to(device)
    targets = ids.roll(-1, 1)
    targets[:, -1] = NO_TARGET
    each = torch.zeros(rows, segments, dtype=torch.long, device=device)
    shape = (rows, segments, length)
    return SegmentBatch(
        ids.view(shape), targets.view(shape), each.bool(), each + length, each, each
    )


def training_step(
    model: PreTrainedModel,
    config: Config,
    bank: MemoryBank,
    batch: SegmentBatch,
    precision: torch.dtype | None = None,
) -> Call:
    """Return the call that trains one step as `unimem-train` does, each time after the same bank.

    `precision` is autocast's, None for that of the weights.
    """
    from unimem.training.module import LitUniMem  # imports lightning, which takes seconds

    lit = LitUniMem(model, config.trainer)
    optimizer = lit.configure_optimizers()["optimizer"]
    kind = model.device.type

    def step() -> None:
        lit.bank = bank
        with torch.autocast(kind, precision, enabled=precision is not None):
            loss = lit.training_step(batch, 0)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.trainer.clip)
        optimizer.step()
        optimizer.zero_grad()
        lit.bank = None

    return step


def measure_training(
    mine: PreTrainedModel,
    plain: PreTrainedModel,
    configs: tuple[Config, Config],
    bank: MemoryBank,
    *,
    seed: int,
    repeats: int,
    clock: Clock,
) -> dict[str, Any]:
    """Measure a training step and that of the model without memory, over as many segments.

    `configs` are of both. Gives what `compared` does, the `segments`, and `peak_mb` and
    `vanilla_peak_mb` above weights, the optimizer's state, memory and inputs.
    """
    segments = configs[0].segments_per_step()
    batch = training_batch(mine, len(bank.position), segments, seed)
    empty = MemoryBank.empty(len(bank.position), mine.device)
    for model in (mine, plain):
        nn.Module.train(model)
    calls = {
        "mine": training_step(mine, configs[0], bank, batch),
        "plain": training_step(plain, configs[1], empty, batch),
    }
    times = clock.in_turn(calls, repeats)
    peaks = {name: megabytes(clock.peak_bytes(call)) for name, call in calls.items()}
    return compared(times["mine"], times["plain"]) | {
        "segments": segments,
        "peak_mb": peaks["mine"],
        "vanilla_peak_mb": peaks["plain"],
    }


@final
@dataclass(frozen=True)
class OneDocument:
    """A document of random tokens; `Documents` of length one.

    Args:
        tokens: [n].
    """

    tokens: np.ndarray

    def __len__(self) -> int:
        return 1

    def ids(self, i: int) -> np.ndarray:
        """Return the token ids."""
        return self.tokens

    def length(self, i: int) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    def name(self, i: int) -> str:
        """Return its name."""
        return "random"


def random_document(model: PreTrainedModel, tokens: int, seed: int) -> OneDocument:
    """Return a document for a model, the same for the same seed."""
    return OneDocument(random_ids(model.config.vocab_size, tokens, seed=seed).numpy())


def measure_document(
    mine: PreTrainedModel,
    plain: PreTrainedModel,
    config: Config,
    *,
    tokens: int,
    seed: int,
    repeats: int,
    clock: Clock,
) -> dict[str, Any]:
    """Measure how long one document of `tokens` takes to evaluate, with memory and without.

    Every token is scored, no logits are kept. Gives what `compared` does, tokens a second, and
    `peak_mb` and `vanilla_peak_mb`; a whole document is read `ROUNDS` times at most.
    """
    read = partial(
        score,
        segment_length=config.memory.segment_length,
        batch_size=1,
        segments_per_call=config.evaluation.segments_per_call,
    )
    models = {"mine": mine, "plain": plain}
    beginning = random_document(mine, min(tokens, 2 * config.memory.segment_length), seed)
    for model in models.values():
        read(model, beginning)
    document = random_document(mine, tokens, seed)
    times: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, int | None] = {}
    for _ in range(min(repeats, ROUNDS)):
        for name, model in models.items():
            call = partial(read, model, document)
            peaks[name] = clock.peak_bytes(lambda c=call, n=name: times[n].append(clock.seconds(c)))
    return compared(times["mine"], times["plain"]) | {
        "tokens": tokens,
        "tokens_per_second": tokens / max(min(times["mine"]), 1e-9),
        "vanilla_tokens_per_second": tokens / max(min(times["plain"]), 1e-9),
        "peak_mb": megabytes(peaks["mine"]),
        "vanilla_peak_mb": megabytes(peaks["plain"]),
    }
