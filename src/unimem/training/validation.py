"""Held-out documents read while a run trains: a curve, when to stop, which weights were best."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from unimem.data.documents import Documents
from unimem.evaluation.run import remembers
from unimem.evaluation.sample import Sample
from unimem.evaluation.score import score
from unimem.evaluation.statistics import perplexity
from unimem.model.attach import attached
from unimem.model.layer import MemoryControl
from unimem.settings import EvaluationSettings, TrainerSettings
from unimem.training.checkpoint import best_checkpoint, try_to_save
from unimem.training.metrics import Metrics, Sink
from unimem.training.module import LitUniMem
from unimem.training.signals import StopSignals

logger = logging.getLogger(__name__)


class Validation(Callback):
    """Reads a sample of the held-out documents every `trainer.validate_every` optimizer steps.

    Also after the last step. Each validation passes a record with `val/nll` (nats per token) and
    `val/perplexity` to the sinks and, if controls are on and the model has memory, `val/nll_off`
    and `val/gain` (off minus own). The memory, modes and random state of training do not change.
    Documents are divided among processes.

    With `trainer.patience` training ends after that many validations in a row without an
    improvement of more than `trainer.min_improvement` over the best; with `trainer.keep_best` the
    weights of the lowest `val/nll` are kept in a checkpoint of their own.

    Lightning's validation loop and its `EarlyStopping` and `ModelCheckpoint` are not used: a
    document is read segment by segment with its own memory, not as batches of a loader; a
    validation that a signal cut short is repeated when the run is continued; and a continued run
    must find the best weights that its checkpoint names, whatever was written later.
    """

    def __init__(
        self,
        documents: "ValidationDocuments",
        settings: TrainerSettings,
        evaluation: EvaluationSettings,
        segment_length: int,
        *,
        metrics: Metrics,
        sinks: Sequence[Sink],
        stop: StopSignals,
        folder: Path,
        forget: Callable[[int], None],
    ):
        self._documents, self._settings, self._evaluation = documents, settings, evaluation
        self._segment_length = segment_length
        self._metrics, self._sinks, self._stop = metrics, sinks, stop
        self._folder, self._forget = folder, forget
        self._pending: int | None = None
        self.best: float | None = None
        self.best_step: int | None = None
        self._reference: float | None = None
        self._waited = 0
        self.stopped_at: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of early stopping and of the best weights."""
        return {
            "pending": self._pending,
            "best": self.best,
            "best_step": self.best_step,
            "reference": self._reference,
            "waited": self._waited,
            "stopped_at": self.stopped_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._pending = state_dict["pending"]
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._reference, self._waited = state_dict["reference"], state_dict["waited"]
        self.stopped_at = state_dict["stopped_at"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeat a validation that a signal cut short; stop if training was over."""
        if self._pending is not None:
            step, self._pending = self._pending, None
            if trainer.is_global_zero:
                self._forget(step)
            self._validate(trainer, pl_module, step)
        trainer.should_stop |= self.stopped_at is not None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate every `validate_every` steps and after the last step."""
        if (batch_idx + 1) % self._settings.accumulate:
            return
        step, every = trainer.global_step, cast(int, self._settings.validate_every)
        if step % every and step != self._settings.steps:
            return
        begin = time.perf_counter()
        self._validate(trainer, pl_module, step)
        self._metrics.leave_out(time.perf_counter() - begin)
        trainer.should_stop |= self.stopped_at is not None

    def why_stopped(self) -> str | None:
        """Return why training ended before its last step; None if it did not."""
        if self.stopped_at is None:
            return None
        least = self._settings.min_improvement
        better = f"by more than {least:g} nats " if least else ""
        return (
            f"val/nll has not improved {better}for {self._waited} validations (trainer.patience); "
            f"its lowest was {self.best:.4f}, after step {self.best_step}"
        )

    def record(self) -> dict[str, Any]:
        """Return the validation's entry in a run's result."""
        return {
            "documents": len(self._documents),
            "also_evaluated": self._documents.also_evaluated,
            "best_step": self.best_step,
            "best_nll": None if self.best is None or math.isinf(self.best) else self.best,
            "stopped_early": self.why_stopped(),
        }

    def _validate(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        assert isinstance(module, LitUniMem)
        with isolate_rng(), trainer.precision_plugin.val_step_context():
            found = self._read(trainer, module.model)
        if found is None:
            self._pending = step
            return
        values = _values(found)
        self._metrics.validated = values
        if trainer.is_global_zero:
            for sink in self._sinks:
                sink({"step": step, **values})
        self._judge(trainer, values["val/nll"], step)

    def _read(self, trainer: Trainer, model: PreTrainedModel) -> dict[str, float] | None:
        """Return nats per token with memory, and without; None if the process is asked to end."""
        uses: list[MemoryControl] = ["own"]
        if self._evaluation.controls and remembers(attached(model).plan):
            uses.append("off")
        rows, processes = self._evaluation.batch_size, trainer.world_size
        sums = torch.zeros(len(uses) + 1, dtype=torch.float64)
        for start in range(0, len(self._documents), rows * processes):
            # All processes decide together, so that none waits for one that has stopped.
            stop = self._stop.received is not None
            if trainer.strategy.reduce_boolean_decision(stop, all=False):
                return None
            own = range(start + trainer.global_rank * rows, len(self._documents))[:rows]
            if not own:
                continue
            some = self._documents.some(list(own))
            for i, use in enumerate(uses):
                read = score(
                    model,
                    some,
                    segment_length=self._segment_length,
                    batch_size=rows,
                    use=use,
                    segments_per_call=self._evaluation.segments_per_call,
                    precision=str(trainer.precision),
                )
                sums[i] += sum(float(nll.sum(dtype="float64")) for nll in read.nll)
            sums[-1] += read.tokens
        if processes > 1:
            sums = sums.to(model.device)
            torch.distributed.all_reduce(sums)
        *nll, tokens = sums.tolist()
        return {use: total / tokens for use, total in zip(uses, nll, strict=True)}

    def _judge(self, trainer: Trainer, nll: float, step: int) -> None:
        """Keep the best weights, and stop if patience is exceeded."""
        value = nll if math.isfinite(nll) else math.inf
        if self.best is None or value < self.best:
            # Earlier best weights stay: an older checkpoint may name them.
            path = best_checkpoint(self._folder, step)
            keep = self._settings.keep_best
            problem = try_to_save(trainer, path, weights_only=True) if keep else None
            if problem is None:
                self.best, self.best_step = value, step
            elif trainer.is_global_zero:
                logger.warning("%s; the best weights stay those that were kept before", problem)
        if self._reference is None or value < self._reference - self._settings.min_improvement:
            self._reference, self._waited = value, 0
            return
        self._waited += 1
        patience = self._settings.patience
        if patience is not None and self._waited >= patience and step < self._settings.steps:
            self.stopped_at = step


class ValidationDocuments:
    """`count` held-out documents to validate with, each cut at `max_tokens`.

    As far as there are enough, they differ from the documents of the final evaluation: a loss that
    selects weights is a biased measure of them. `index` are the documents' indices in the held-out
    split, `also_evaluated` the number of documents that the final evaluation reads too.
    """

    def __init__(self, held_out: Documents, count: int, evaluation: EvaluationSettings):
        self._held_out, self._max_tokens = held_out, evaluation.max_tokens
        read = set(Sample(held_out, evaluation.documents, None).index)
        # One token has nothing to predict.
        usable = [i for i in range(len(held_out)) if held_out.length(i) > 1]
        others = [i for i in usable if i not in read]
        index = _evenly(others, count)
        more = _evenly([i for i in usable if i in read], count - len(index))
        self.index, self.also_evaluated = sorted(index + more), len(more)

    def __len__(self) -> int:
        return len(self.index)

    def some(self, places: list[int]) -> Sample:
        """Return the documents with these positions in `index`."""
        return Sample.of(self._held_out, [self.index[i] for i in places], self._max_tokens)


def _evenly(items: list[int], count: int) -> list[int]:
    kept = max(0, min(count, len(items)))
    return [items[i * len(items) // kept] for i in range(kept)]


def _values(nll: dict[str, float]) -> dict[str, float]:
    own = nll["own"]
    values = {"val/nll": own, "val/perplexity": float(perplexity(own))}
    if "off" in nll:
        values |= {"val/nll_off": nll["off"], "val/gain": nll["off"] - own}
    return values
