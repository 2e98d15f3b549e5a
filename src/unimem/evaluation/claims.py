"""What an exhibit claims, tested on the losses of its tokens.

A claim is settled by an interval, never by a mean alone: over seeds and documents, or with one seed
over documents, which says nothing of what other seeds would give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unimem.evaluation.statistics import Estimate, several_seeds
from unimem.evaluation.tokens import TokenTable


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence, and whether the measurement bears it out."""

    text: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """Estimates in nats per token by name, and the claims about them.

    Without claims an exhibit only shows.
    """

    scope: str
    levels: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    claims: Sequence[Claim] = field(default=())

    @property
    def verdict(self) -> str | None:
        """PASS if every claim holds, else FAIL; None without claims."""
        if not self.claims:
            return None
        return "PASS" if all(claim.holds for claim in self.claims) else "FAIL"


class _Readings:
    """Columns [K, N] of K seeds' models, which all read the same N tokens."""

    def __init__(self, **runs: Sequence[TokenTable]):
        self.document = next(iter(runs.values()))[0].document
        for tables in runs.values():
            for table in tables:
                assert np.array_equal(table.document, self.document)
        self.runs = runs

    def level(self, run: str, column: str) -> Estimate:
        return several_seeds(self._stack(run, column), self.document)

    def difference(self, run: str, column: str, other_run: str, other: str) -> Estimate:
        difference = self._stack(run, column) - self._stack(other_run, other)
        return several_seeds(difference, self.document)

    def _stack(self, run: str, column: str) -> np.ndarray:
        return np.stack([table.columns[column].astype(np.float64) for table in self.runs[run]])


def known_truth(
    memory: Sequence[TokenTable],
    none: Sequence[TokenTable],
    *,
    first: int,
    segment_length: int,
    vocab_size: int,
    leak: bool,
) -> Exhibit:
    """Hold a model with memory against the best that any model without memory can do.

    memory, none: for each seed what the model with memory and the one without read; tokens at
    position `first` and later count. `leak`: some reading was below its own best possible loss.
    """
    end = int(memory[0].position.max()) + 1
    readings = _Readings(
        memory=[table.between(first, end) for table in memory],
        none=[table.between(first, end) for table in none],
    )
    beyond = readings.difference("memory", "own", "memory", "bound_none")
    trained = readings.difference("memory", "own", "none", "own")
    wrong = readings.difference("memory", "other", "memory", "off")
    # The bound leaves out what a window's first token tells: at most ln V for each segment.
    slack = math.log(vocab_size) / segment_length
    return Exhibit(
        scope=f"tokens at positions {first} to {end} of every document",
        levels={
            "best possible, with this memory": readings.level("memory", "bound_memory"),
            "model with memory": readings.level("memory", "own"),
            "best possible without memory": readings.level("memory", "bound_none"),
            "model without memory, trained as long": readings.level("none", "own"),
            "model with memory, switched off": readings.level("memory", "off"),
            "model with memory, another document's": readings.level("memory", "other"),
        },
        differences={
            "model with memory - best possible without": beyond,
            "model with memory - model without": trained,
            "another document's memory - switched off": wrong,
        },
        claims=[
            Claim(
                text="the model with memory is below the best loss possible without memory",
                holds=beyond.high < -slack,
            ),
            Claim(text="another document's memory is worse than none", holds=wrong.low > 0),
            Claim(text="no model is below its best possible loss: nothing leaks", holds=not leak),
        ],
    )


def same_weights(table: TokenTable, *, first: int, leak: bool, judged: bool = True) -> Exhibit:
    """Hold one model against itself with memory off, and with another document's memory.

    Tokens at position `first` and later count. `leak`: some reading was below its best possible
    loss, if that is known. `judged=False` makes no claim.
    """
    end = int(table.position.max()) + 1
    readings = _Readings(memory=[table.between(first, end)])
    gain = readings.difference("memory", "own", "memory", "off")
    right = readings.difference("memory", "own", "memory", "other")
    claims = [
        Claim(text="the model is better with its memory than without", holds=gain.high < 0),
        Claim(text="it is better with its own than with another document's", holds=right.high < 0),
    ]
    if "bound_none" in table.columns:
        text = "no reading is below the best possible loss: nothing leaks"
        claims.append(Claim(text=text, holds=not leak))
    return Exhibit(
        scope=f"tokens at positions {first} to {end} of every document",
        levels={
            "memory on": readings.level("memory", "own"),
            "memory off": readings.level("memory", "off"),
            "another document's memory": readings.level("memory", "other"),
        },
        differences={"memory on - off": gain, "own memory - another document's": right},
        claims=claims if judged else (),
    )
