"""A segment step with memory and without: time, ratio and peak memory.

Shapes: B rows, T tokens of a segment, E hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unimem.bench.bank import random_ids
from unimem.bench.timer import Clock, compared
from unimem.memory.bank import MemoryBank
from unimem.model.segments import run

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Step:
    """A segment to be read after what a bank holds.

    Args:
        model: with memory attached.
        bank: cut from the gradient.
        ids: [B, 1, T].
        direction: [T, E], what the gradient of the output is; in place of a loss, so that the head
            does not count.
    """

    model: PreTrainedModel
    bank: MemoryBank
    ids: Tensor
    direction: Tensor

    @torch.no_grad()
    def forward(self) -> None:
        """Read the segment."""
        self._read()

    def both(self) -> None:
        """Read the segment and add its gradients to those of the weights."""
        (self._read() * self.direction).sum().backward()

    def _read(self) -> Tensor:
        B, S, T = self.ids.shape
        starts = self.ids.new_zeros(B, S, dtype=torch.bool)
        lengths = self.ids.new_full((B, S), T)
        hidden, _, _ = run(self.model, self.bank, self.ids, starts=starts, lengths=lengths)
        return hidden


def make_step(model: PreTrainedModel, bank: MemoryBank, length: int, seed: int) -> Step:
    """Make the step of a segment of `length` tokens, the same for the same seed."""
    config, rows = model.config, len(bank.position)
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(length, config.hidden_size, generator=generator)
    return Step(
        model=model,
        bank=bank,
        ids=random_ids(config.vocab_size, rows, 1, length, seed=seed).to(like.device),
        direction=direction.to(like) / direction.numel() ** 0.5,
    )


def measure_step(mine: Step, plain: Step, repeats: int, clock: Clock) -> dict[str, Any]:
    """Measure a step and the one of the model without memory, in turn.

    Gives `forward` (no gradient, evaluation mode) and `both` (forward and backward, training mode):
    each as `compared`, with `peak_mb` and `vanilla_peak_mb` above what is held before: weights,
    their gradients, memory and inputs.
    """
    found: dict[str, Any] = {}
    for mode in ("forward", "both"):
        calls = {"mine": getattr(mine, mode), "plain": getattr(plain, mode)}
        for model in (mine.model, plain.model):
            nn.Module.train(model, mode == "both")
        times = clock.in_turn(calls, repeats)
        peaks = {name: megabytes(clock.peak_bytes(call)) for name, call in calls.items()}
        found[mode] = compared(times["mine"], times["plain"]) | {
            "peak_mb": peaks["mine"],
            "vanilla_peak_mb": peaks["plain"],
        }
    return found


def megabytes(count: int | None) -> float | None:
    """Turn bytes into millions of them."""
    return None if count is None else count / MB
