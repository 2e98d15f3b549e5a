"""Metrics of training: a line of metrics.jsonl every few steps, a progress bar, log lines."""

import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from unimem.evaluation.statistics import perplexity
from unimem.runs.files import write_bytes_atomic
from unimem.settings import TrainerSettings
from unimem.training.module import LitUniMem
from unimem.words import written

logger = logging.getLogger(__name__)

VALIDATION = "val/nll"
"""Key that records of validation have, and records of training do not."""

Sink = Callable[[dict[str, Any]], None]
"""Takes one record of metrics."""


class Metrics(Callback):
    """Sums losses and tokens of all processes, and passes records to every sink.

    `loss` is the summed NLL of all tokens since the last record, divided by their number: never a
    mean of means. `seconds` and `tokens_seen` go on when a run is continued.
    """

    def __init__(self, settings: TrainerSettings, sinks: Sequence[Sink]):
        self._settings, self._sinks = settings, sinks
        self._nll, self._tokens = 0.0, 0
        self.tokens_seen = 0
        self.seconds = 0.0
        self.latest: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self._own = [0.0, 0.0]
        self._clock = 0.0
        self._logged: tuple[float, int] = (0.0, 0)

    @property
    def tokens_per_second(self) -> float:
        """Tokens with a target that training read in a second, over the whole run."""
        return self.tokens_seen / self.seconds if self.seconds else 0.0

    def leave_out(self, seconds: float) -> None:
        """Exclude these seconds, which were not spent on training."""
        self._clock += seconds

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, to be saved."""
        return {
            "nll": self._nll,
            "tokens": self._tokens,
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "logged": list(self._logged),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved sums."""
        self._nll, self._tokens = state_dict["nll"], state_dict["tokens"]
        self.tokens_seen, self.seconds = state_dict["tokens_seen"], state_dict["seconds"]
        seconds, tokens = state_dict["logged"]
        self._logged = (seconds, tokens)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add losses and tokens, and write a record if one is due after this optimizer step."""
        self._own[0] += outputs["nll"].item()
        self._own[1] += outputs["tokens"].item()
        if (batch_idx + 1) % self._settings.accumulate:
            return
        nll, tokens = self._own
        if trainer.world_size > 1:
            sums = torch.tensor(self._own, dtype=torch.float64, device=pl_module.device)
            torch.distributed.all_reduce(sums)
            nll, tokens = sums.tolist()
        self._own = [0.0, 0.0]
        self._nll += nll
        self._tokens += int(tokens)
        self.tokens_seen += int(tokens)
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now
        self.latest = _losses(nll, int(tokens))
        step = trainer.global_step
        if step % self._settings.log_every and step not in (1, self._settings.steps):
            return
        assert isinstance(pl_module, LitUniMem)
        if trainer.is_global_zero:
            record = self._record(step, pl_module)
            for sink in self._sinks:
                sink(record)
        self._nll, self._tokens = 0.0, 0
        self._logged = (self.seconds, self.tokens_seen)

    def _record(self, step: int, module: LitUniMem) -> dict[str, Any]:
        seconds, tokens = self._logged
        return {
            "step": step,
            **_losses(self._nll, self._tokens),
            "learning_rate": module.last_learning_rate,
            "gradient_norm": module.gradient_norm,
            "tokens_seen": self.tokens_seen,
            "tokens_per_second": (self.tokens_seen - tokens) / (self.seconds - seconds),
            "seconds": self.seconds,
        }


class MetricsFile:
    """Appends records to a file, one line of JSON each.

    Lines that cannot be written, as on a full disk, are kept and tried again with the next one.

    `lost` counts the records that a checkpoint knew and that were no longer there, or no longer as
    they were written, when the run was continued from it.
    """

    def __init__(self, path: Path):
        self._path = path
        self.lost = 0
        self._waiting: list[str] = []

    def __call__(self, record: dict[str, Any]) -> None:
        """Append a record; JSON has no NaN and no infinity, which become null."""
        plain = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self._waiting.append(json.dumps(plain) + "\n")
        try:
            self.settle()
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("%s; its lines are kept, and tried again with the next", error)

    def settle(self) -> None:
        """Write what could not be written before. Raises OSError if it still cannot be."""
        if not self._waiting:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    _write_all(file, "".join(self._waiting).encode())
                except OSError:
                    file.truncate(end)  # a part of a line
                    raise
        except OSError as error:
            raise OSError(
                error.errno, f"{self._path} cannot be written: {error.strerror}"
            ) from error
        self._waiting.clear()

    def state(self) -> dict[str, Any]:
        """Write the records through to the disk; give their number and sha256 for a checkpoint.

        Raises OSError if they cannot be written.
        """
        self.settle()
        lines = self._lines()
        if lines:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        return {"lines": len(lines), "sha256": _sha256(lines), "lost": self.lost}

    def require_state(self, state: Mapping[str, Any], step: int) -> None:
        """Compare what is there with what a checkpoint after `step` knows; say what is missing."""
        self.lost = state["lost"]
        lines = self._lines()
        if _sha256(lines) == state["sha256"]:
            return
        self.lost += max(1, state["lines"] - len(lines))
        steps = [json.loads(line)["step"] for line in lines]
        logger.warning(
            "%s holds %d of the %d records that the checkpoint of step %d knows%s: the others were "
            "lost or changed, and the learning curve has a gap; the model is not affected",
            self._path,
            len(lines),
            state["lines"],
            step,
            f" (steps {steps[0]} to {steps[-1]})" if steps else "",
        )

    def keep_until(self, step: int, *, validated: bool = True) -> None:
        """Drop what a killed process wrote after `step`, and lines that are no records.

        And what it wrote of the validation after `step`, if that counts as not made.
        """
        kept: list[str] = []
        for line in self._lines():
            try:
                record = json.loads(line)
                at = record["step"]
            except (ValueError, RecursionError, TypeError, KeyError):
                continue  # the last line of a process that was killed, or damage
            if at < step or at == step and (validated or VALIDATION not in record):
                kept.append(line)
        if self._path.exists():
            write_bytes_atomic(self._path, "".join(f"{line}\n" for line in kept).encode())

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        return self._path.read_text(encoding="utf-8", errors="replace").splitlines()


class ProgressBar(RichProgressBar):
    """A bar on the terminal, with the loss of the last step."""

    def __init__(self, metrics: Metrics):
        super().__init__(console_kwargs={"stderr": True})
        self._metrics = metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # Steps are what counts; Lightning would say epoch 0 of -2.
        return "training"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return loss and perplexity, and those of the last validation."""
        return {**self._metrics.latest, **self._metrics.validated}


def on_terminal() -> bool:
    """Whether somebody is watching, so that a bar is worth drawing."""
    return sys.stderr.isatty()


def log_line(max_steps: int) -> Sink:
    """Return a sink that logs a short line of each record."""

    def log(record: dict[str, Any]) -> None:
        if VALIDATION in record:
            found = [f"{k} {written(v, '.4f')}" for k, v in record.items() if k != "step"]
            logger.info("step %d of %d: %s", record["step"], max_steps, ", ".join(found))
            return
        logger.info(
            "step %d of %d: loss %.4f, perplexity %s, %.0f tokens/s",
            record["step"],
            max_steps,
            record["loss"],
            written(record["perplexity"], ".2f"),
            record["tokens_per_second"],
        )

    return log


def _sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_all(file: IO[bytes], data: bytes) -> None:
    while data:  # on a disk that fills up a part may be written
        data = data[file.write(data) :]


def _losses(nll: float, tokens: int) -> dict[str, float]:
    loss = nll / max(tokens, 1)
    return {"loss": loss, "perplexity": float(perplexity(loss))}
