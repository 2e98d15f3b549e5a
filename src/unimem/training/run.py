"""A run from its settings to its result: the plain function behind `unimem-train`."""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from unimem.config import Config
from unimem.data.stream import SegmentStream
from unimem.evaluation.run import evaluate_all
from unimem.evaluation.tokens import FILE_NAME
from unimem.model.attach import save_memory
from unimem.model.precision import dtype_name
from unimem.paths import own_config
from unimem.runs.continued import settings_digest
from unimem.runs.environment import git_commit, machine, peak_memory_bytes, versions
from unimem.runs.files import open_to_readers, write_result
from unimem.runs.folder import MODEL, RunFolder, open_run, weights_folder
from unimem.runs.layout import CHECKPOINTS, METRICS
from unimem.runs.records import read_metrics
from unimem.runs.signature import signature
from unimem.runs.write_errors import explain_write_errors
from unimem.training.checkpoint import (
    AtomicCheckpointIO,
    Checkpoints,
    best_checkpoint,
    quarantine,
    step_of,
)
from unimem.training.cluster import cluster_environment, explain_lost_process
from unimem.training.devices import (
    chosen_strategy,
    num_devices,
)
from unimem.training.footprint import num_parameters
from unimem.training.launched import rank_of, slurm_job
from unimem.training.loggers import (
    RunLogger,
    as_sink,
    eval_values,
    make_loggers,
    replay,
)
from unimem.training.metrics import Metrics, MetricsFile, ProgressBar, Sink, log_line, on_terminal
from unimem.training.module import LitUniMem
from unimem.training.out_of_memory import (
    evaluation_knobs,
    explain_oom,
    training_knobs,
)
from unimem.training.prepare import headline, prepare
from unimem.training.resume import (
    ProcessState,
    explain_restore_errors,
    saved_state,
)
from unimem.training.signals import StopSignals
from unimem.training.validation import Validation, ValidationDocuments
from unimem.training.vocabulary import save_vocabulary
from unimem.words import writing

logger = logging.getLogger(__name__)

Log = Callable[[str], None]
"""Takes what a user wants to read about the run."""


def train(config: Config, log: Log = logger.info) -> Path:
    """Train, read held-out documents, and return the run's folder.

    The folder then holds `config.yaml`, `metrics.jsonl`, `checkpoints/`, `model/` and, last of
    all, `result.json`. With `resume=true` the run goes on from its newest whole checkpoint, as if
    it had never stopped; `resume=auto` does so if there is one to continue.

    Raises `ConfigError` and other ValueErrors for what the user can mend, `OutOfMemoryError` where
    memory ran out, and SystemExit with 128 + signal when SIGTERM or SIGINT ended the run; it can be
    continued then.
    """
    rank = rank_of(os.environ)
    rank_zero_only.rank = rank  # which Lightning reads from other variables
    place = Path(config.output) / config.study / (config.name or "")
    with StopSignals() as stop, explain_write_errors(place), open_run(config, rank) as folder:
        if folder.finished:
            log(f"{folder.path} is finished; there is nothing to continue")
            return folder.path
        _Run(config, folder, stop, log if rank == 0 else lambda line: None).run()
        return folder.path


class _Run:
    """One process's share of a run."""

    def __init__(self, config: Config, folder: RunFolder, stop: StopSignals, log: Log):
        self.asked, self.record = config, config.record()
        self.stop, self.log = stop, log
        self.folder, self.path = folder, folder.path
        self.began = time.perf_counter()
        prepared = prepare(config, folder.path)
        self.prepared, self.config, self.corpus = prepared, prepared.config, prepared.corpus
        self.checkpoint, self.model = prepared.checkpoint, prepared.model

    def run(self) -> None:
        """Train, evaluate, record."""
        checkpoints = self.path / CHECKPOINTS
        checkpoint, config = self.checkpoint, self.config
        self.log(headline(self.prepared, self.path, began=self.folder.begun))
        with ExitStack() as stack:
            file = MetricsFile(self.path / METRICS)
            sinks: list[Sink] = [file]
            loggers = self.loggers()
            for each in loggers:
                sinks.append(as_sink(each))
                stack.callback(each.finish, False)
            if not on_terminal():
                sinks.append(log_line(self.config.trainer.steps))
            metrics = Metrics(self.config.trainer, sinks)
            validation = self.validation(metrics, sinks, file)
            trainer = self.trainer(metrics, validation, file)
            if trainer.is_global_zero:
                quarantine(checkpoints, checkpoint)
                file.keep_until(0 if checkpoint is None else step_of(checkpoint))
                if checkpoint is not None and (known := saved_state(checkpoint).get("metrics")):
                    file.require_state(known, step_of(checkpoint))
                replay(read_metrics(self.path), loggers)
            self.folder.begun = True
            again = f"resume=true name={self.path.name}"
            then = (
                f"change them in a new run, or make memory free and continue with {again} "
                "(of these settings only memory.device may be another then)"
            )
            with explain_oom("training", lambda: training_knobs(self.config), then):
                self.fit(trainer, checkpoint)
            if not trainer.is_global_zero:
                return
            early = None if validation is None else validation.why_stopped()
            over = early or trainer.global_step >= self.config.trainer.steps
            if not over or self.stop.received:
                again = "the same command" if config.resume == "auto" else again
                self.log(f"stopped after step {trainer.global_step}; {again} continues the run")
                # Another process may be the one that received the signal.
                raise SystemExit(128 + (self.stop.received or signal.SIGTERM))
            if early:
                self.log(f"{'stopped early':<18} after step {trainer.global_step}: {early}")
            then = f"continue with {again} evaluation.batch_size=1"
            with explain_oom("evaluating", lambda: evaluation_knobs(self.config), then):
                file.settle()
                result = self.result(metrics, trainer.global_step, validation)
            result["metrics_lost"] = file.lost
            write_result(self.path, result, (FILE_NAME, METRICS, MODEL))
            # Only then: a server that does not answer must not cost the result.
            for each in loggers:
                each.log(eval_values(result["evaluation"]), trainer.global_step)
                if command := each.finish(True):
                    self.log(f"{'W&B':<18} to send it: {command}")

    def loggers(self) -> list[RunLogger]:
        """Start the loggers, in the first process."""
        if (rank_zero_only.rank or 0) > 0:
            return []
        facts = {
            "parameters": num_parameters(self.model),
            "state_bytes_per_row": self.prepared.state_bytes,
            "corpus": self.corpus.digest,
            "commit": git_commit(),
            "versions": versions(),
        }
        return make_loggers(self.config, self.path, self.record, facts)

    def validation(
        self, metrics: Metrics, sinks: list[Sink], file: MetricsFile
    ) -> Validation | None:
        """Make what reads held-out documents during training, if the settings ask for it."""
        settings, evaluation = self.config.trainer, self.config.evaluation
        if settings.validate_every is None:
            return None
        held_out, count = self.corpus.validation, settings.validation_documents
        documents = ValidationDocuments(held_out, count, evaluation)
        if documents.also_evaluated:
            logger.warning(
                "%d of %d documents of validation are read at the end too: %d are held out, and "
                "evaluation.documents and trainer.validation_documents are more; weights chosen by "
                "them look better than they are",
                documents.also_evaluated,
                len(documents),
                len(held_out),
            )
        return Validation(
            documents,
            settings,
            evaluation,
            self.config.memory.segment_length,
            metrics=metrics,
            sinks=sinks,
            stop=self.stop,
            folder=self.path / CHECKPOINTS,
            forget=lambda step: file.keep_until(step, validated=False),
        )

    def trainer(
        self, metrics: Metrics, validation: Validation | None, file: MetricsFile
    ) -> Trainer:
        """Make Lightning's trainer; what it would record itself is switched off."""
        settings, cluster = self.config.trainer, cluster_environment(os.environ)
        callbacks: list[Callback] = [
            metrics,
            *([] if validation is None else [validation]),
            ProcessState(self.corpus.digest, settings_digest(self.record), file, self.log),
            Checkpoints(self.path / CHECKPOINTS, settings, self.stop),
        ]
        if on_terminal():
            callbacks.append(ProgressBar(metrics))
        return Trainer(
            accelerator=self.prepared.device.type,
            devices=num_devices(settings),
            num_nodes=settings.num_nodes,
            strategy=chosen_strategy(settings, self.model),
            precision=cast(Any, self.prepared.precision),
            max_steps=settings.steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *([] if cluster is None else [cluster])],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=on_terminal(),
            use_distributed_sampler=False,
            default_root_dir=self.path,
        )

    def fit(self, trainer: Trainer, checkpoint: Path | None) -> None:
        """Train from the checkpoint, or from the beginning, until the last step or a signal."""
        settings = self.config.trainer
        if settings.steps == 0:
            return
        stream = SegmentStream(
            self.corpus.train,
            batch_size=settings.batch_size,
            segment_length=self.config.memory.segment_length,
            segments_per_step=self.config.segments_per_step(),
            seed=self.config.seed,
            steps=settings.steps * settings.accumulate,
            shuffle=True,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        with explain_lost_process(trainer.world_size), explain_restore_errors(checkpoint, trainer):
            trainer.fit(LitUniMem(self.model, settings), stream, ckpt_path=checkpoint)

    def result(self, metrics: Metrics, steps: int, validation: Validation | None) -> dict[str, Any]:
        """Save the model, read held-out documents, and put everything together."""
        weights = self.chosen_weights(steps, validation)
        model = weights_folder(self.path, self.record)
        if model == self.path / MODEL:
            with writing(model):
                self.model.save_pretrained(model)
                save_vocabulary(self.model, self.corpus, model)
                save_memory(self.model, model)
                open_to_readers(model)
        cast(torch.nn.Module, self.model).to(self.prepared.device)
        evaluation = evaluate_all(
            self.model,
            self.corpus,
            segment_length=self.config.memory.segment_length,
            settings=self.config.evaluation,
            folder=self.path,
            precision=self.prepared.precision,
        )
        return {
            "status": "finished",
            "name": self.path.name,
            "study": self.config.study,
            "seed": self.config.seed,
            "signature": signature(self.asked, self.corpus.digest),
            "method": self.config.method.name,
            "memory": self.config.memory.flat(self.model.config.num_hidden_layers),
            "steps": steps,
            "weights": weights,
            "validation": None if validation is None else validation.record(),
            "parameters": num_parameters(self.model),
            "state_bytes_per_row": self.prepared.state_bytes,
            "tokens_seen": metrics.tokens_seen,
            "tokens_per_second": metrics.tokens_per_second,
            "training_seconds": metrics.seconds,
            "seconds": time.perf_counter() - self.began,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "peak_memory_bytes": peak_memory_bytes(),
            "precision": self.prepared.precision,
            "weights_dtype": dtype_name(self.prepared.weights_dtype),
            "corpus": {
                "digest": self.corpus.digest,
                "vocabulary": self.corpus.vocabulary,
                "summary": self.corpus.summary(),
                "skipped": self.corpus.skipped,
            },
            "evaluation": evaluation,
            "versions": versions(),
            "commit": git_commit(),
            "machine": machine(),
            "slurm_job": slurm_job(os.environ),
            "config_dir": None if (own := own_config()) is None else str(own),
            "config": self.record | {"name": self.path.name},
        }

    def chosen_weights(self, steps: int, validation: Validation | None) -> dict[str, Any]:
        """Put the weights in place that are saved and evaluated, and say which they are.

        Raises ValueError if the best ones were damaged.
        """
        if validation is None or not self.config.trainer.keep_best or validation.best_step is None:
            return {"which": "last", "step": steps}
        step = validation.best_step
        path = best_checkpoint(self.path / CHECKPOINTS, step)
        try:
            saved = AtomicCheckpointIO().load_checkpoint(path)
        except ValueError as error:
            raise ValueError(
                f"{error}; resume=true trainer.keep_best=false evaluates the last weights instead"
            ) from None
        state = {k.removeprefix("model."): v for k, v in saved["state_dict"].items()}
        cast(torch.nn.Module, self.model).load_state_dict(state)
        self.log(f"{'weights':<18} the best, after step {step} of {steps}")
        return {"which": "best", "step": step}
