"""What a study will take, told before it starts."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimem.settings import PretrainedModel
from unimem.studies.cells import Cell
from unimem.studies.estimate.flops import Work, num_devices, on_gpu, work_of
from unimem.studies.estimate.throughput import Measured, measured_runs, reading_rate, training_rate
from unimem.studies.run.cell_state import finished
from unimem.words import duration

GPU_RATE = 400e12 * 0.4
"""FLOPs a second of a data-centre GPU in bfloat16: 400 TFLOP/s, of which training reaches 40 %."""

CPU_RATE = 20e9
"""FLOPs a second of a process on a CPU, with a small model.

Seen on one thread of a server's CPU: 10 to 40 billion with memory and 25 to 55 billion without it,
for 80 thousand to 900 thousand parameters and 1000 to 2000 tokens a step; a tenth of that for
models a tenth as large.
"""

STARTING = 6.0
"""Seconds in which a process imports what it needs."""


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """A run that is not finished.

    Args:
        cell: the run.
        work: what it has to do; None if its model is unknown.
        seconds: that it will take by itself.
        assumed: the rate behind it where nothing alike was measured, in words.
        devices: that it is counted on.
    """

    cell: Cell
    work: Work | None
    seconds: float
    assumed: str | None
    devices: int = 1


def estimate(runs: Sequence[Cell], output: Path, gpus: int) -> list[RunEstimate]:
    """Estimate every run that is not finished, on a machine with so many GPUs.

    Its rates are those of finished runs under `output` that are alike, else assumed ones.
    """
    left = [cell for cell in runs if not finished(cell)]
    before = measured_runs(output) if left else []
    return [_estimate(cell, work_of(cell, gpus), before, gpus) for cell in left]


def schedule(found: Sequence[RunEstimate], slots: int) -> float:
    """Return the seconds until all are done: each starts in the first slot free, after its base."""
    free = [0.0] * slots
    ends: dict[str, float] = {}
    for run in found:
        base = run.cell.base
        ready = 0.0 if base is None else ends.get(base.signature, 0.0)
        end = max(heapq.heappop(free), ready) + run.seconds
        heapq.heappush(free, end)
        ends[run.cell.signature] = end
    return max(ends.values(), default=0.0)


def report(found: Sequence[RunEstimate], total: int, slots: int) -> list[str]:
    """Return in some lines what is left of `total` runs, `slots` at a time."""
    lines = [f"runs: {total}, finished already: {total - len(found)}"]
    known = [(run, run.work) for run in found if run.work is not None]
    if known:
        works = [work for _, work in known]
        trained, read = sum(w.trained for w in works), sum(w.read for w in works)
        flops = sum(w.training + w.reading for w in works)
        run, largest = max(known, key=lambda pair: pair[1].weight_bytes + pair[1].state_bytes)
        lines += [
            "estimate of what is left, nothing of it measured unless it says so:",
            f"  tokens   {_short(trained)} to train on, {_short(read)} to read, controls included",
            f"  compute  {flops:.1e} FLOPs",
            f"  memory   {_bytes(largest.weight_bytes + largest.state_bytes)} on a device at most: "
            f"{_bytes(largest.weight_bytes)} for {_short(largest.parameters)} parameters"
            f"{', their gradients and AdamW' if largest.trained else ''}{_sharded(run)}, "
            f"{_bytes(largest.state_bytes)} for memory; activations come on top "
            f"({run.cell.label})",
            f"  time     {duration(schedule(found, slots))} with {slots} at a time: "
            f"{_rates(found)}",
        ]
    return lines + _unknown(found)


def _estimate(cell: Cell, work: Work | None, before: Sequence[Measured], gpus: int) -> RunEstimate:
    if work is None:
        return RunEstimate(cell=cell, work=None, seconds=STARTING, assumed=None)
    config = cell.config
    devices = num_devices(config.trainer, gpus) * config.trainer.num_nodes
    one, words = CPU_RATE, f"{CPU_RATE / 1e9:.0f} GFLOP/s for a process on a CPU"
    if on_gpu(config.trainer, gpus):
        one, words = GPU_RATE, "40 % of 400 TFLOP/s for a GPU"
    training = training_rate(before, config, work.parameters) if work.trained else one
    reading = reading_rate(before, config, work.parameters)
    # One process reads, whatever trained.
    seconds = work.training / (training or one * devices) + work.reading / (reading or one)
    return RunEstimate(
        cell=cell,
        work=work,
        seconds=STARTING + seconds,
        assumed=words if training is None or reading is None else None,
        devices=devices,
    )


def _sharded(run: RunEstimate) -> str:
    """Return over how many devices FSDP shards the weights of a run."""
    settings = run.cell.config.trainer
    if settings.strategy != "fsdp":
        return ""
    if run.devices == 1:
        return " (not sharded on one device: set trainer.devices to the GPUs of a node)"
    return f" (sharded over {run.devices} devices)"


def _rates(found: Sequence[RunEstimate]) -> str:
    """Return where the rates come from."""
    assumed = [run.assumed for run in found if run.work is not None]
    said = {
        words: "as measured here on runs alike" if words is None else f"assumed {words}"
        for words in assumed
    }
    return "; ".join(f"{text} (runs: {assumed.count(words)})" for words, text in said.items())


def _unknown(found: Sequence[RunEstimate]) -> list[str]:
    """Name what the estimate leaves out, and what it guessed."""
    lines: list[str] = []
    models = [run.cell.first().config.model for run in found if run.work is None]
    for name, runs in Counter(m.name for m in models if isinstance(m, PretrainedModel)).items():
        lines.append(
            f"  left out {name}, whose size is not known here (runs: {runs}): set "
            "model.parameters and model.num_layers"
        )
    kinds = sorted({run.cell.config.data.kind for run in found if run.cell.problem})
    auto = {run.devices for run in found if run.cell.config.trainer.devices == "auto"}
    if auto:
        shown = " or ".join(map(str, sorted(auto)))
        lines.append(f"  counted  trainer.devices=auto as {shown}, as on this machine")
    if kinds:
        lines.append(f"  guessed  the documents of data={', '.join(kinds)}, which are not here")
    return lines


def _short(count: float) -> str:
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:.0f}"


def _bytes(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
