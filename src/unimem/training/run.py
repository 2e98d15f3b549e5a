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
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from unimem.attention.backend import choose
from unimem.config import Config
from unimem.data.build import build_corpus
from unimem.data.documents import Corpus, Documents
from unimem.data.stream import SegmentStream
from unimem.evaluation.run import evaluate_all, remembers
from unimem.evaluation.sample import Sample
from unimem.evaluation.tokens import FILE_NAME
from unimem.memory.plan import DIMENSIONS, MemoryPlan
from unimem.memory.unread import unread
from unimem.model.attach import attach, attached, save_memory
from unimem.model.load import load_model
from unimem.model.precision import WEIGHTS, dtype_name, own_precision
from unimem.paths import own_config
from unimem.runs.continued import settings_digest
from unimem.runs.environment import git_commit, machine, peak_memory_bytes, versions
from unimem.runs.files import open_to_readers, write_result
from unimem.runs.folder import MODEL, RunFolder, open_run, weights_folder
from unimem.runs.layout import CHECKPOINTS, METRICS
from unimem.runs.records import read_metrics
from unimem.runs.signature import require_cell, signature
from unimem.runs.unwritten import unwritten_told
from unimem.settings import PretrainedModel
from unimem.training.checkpoint import (
    AtomicCheckpointIO,
    Checkpoints,
    best_checkpoint,
    newest_valid,
    set_aside,
    step_of,
)
from unimem.training.cluster import cluster_environment, told_if_lost
from unimem.training.devices import (
    chosen_precision,
    chosen_strategy,
    device_type,
    num_devices,
)
from unimem.training.exhausted import (
    CORPUS_KNOBS,
    evaluation_knobs,
    memory_told,
    training_knobs,
)
from unimem.training.fits import require_fit
from unimem.training.footprint import num_parameters, state_bytes_per_row
from unimem.training.launched import rank_of, require_tasks, slurm_job, task_of
from unimem.training.loggers import (
    RunLogger,
    as_sink,
    describe_wandb,
    eval_values,
    make_loggers,
    replay,
)
from unimem.training.metrics import Metrics, MetricsFile, ProgressBar, Sink, log_line, on_terminal
from unimem.training.module import LitUniMem
from unimem.training.resume import (
    ProcessState,
    refused_unless_restored,
    require_same_run,
    saved_state,
)
from unimem.training.signals import StopSignals
from unimem.training.start_weights import start_memory
from unimem.training.validation import Validation, ValidationDocuments
from unimem.training.vocabulary import require_vocabulary, save_vocabulary
from unimem.words import counted, writing

logger = logging.getLogger(__name__)

Announce = Callable[[str], None]
"""Takes what a user wants to read about the run."""


def train(config: Config, announce: Announce = logger.info) -> Path:
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
    with StopSignals() as stop, unwritten_told(place), open_run(config, rank) as folder:
        if folder.finished:
            announce(f"{folder.path} is finished; there is nothing to continue")
            return folder.path
        _Run(config, folder, stop, announce if rank == 0 else _silent).to_the_end()
        return folder.path


class _Run:
    """One process's share of a run."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        stop: StopSignals,
        announce: Announce,
    ):
        self.asked, self.record = config, config.record()
        self.stop, self.announce = stop, announce
        self.folder, self.path = folder, folder.path
        self.began = time.perf_counter()
        settings = config.trainer
        require_tasks(task_of(os.environ), num_devices(settings), settings.num_nodes)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        seed_everything(config.seed, verbose=False)
        with memory_told("building the corpus", lambda: CORPUS_KNOBS, "nothing was trained"):
            self.corpus = build_corpus(config.data)
        require_cell(config, self.path.name, self.corpus.digest)
        self.checkpoint = newest_valid(self.path / CHECKPOINTS)
        if self.checkpoint is not None:
            require_same_run(self.checkpoint, self.corpus.digest, settings_digest(self.record))
        if isinstance(config.model, PretrainedModel):
            require_vocabulary(config.model.name, self.corpus, config.data)
        self.config = _with_steps(config, self.corpus.train)
        with memory_told(
            "loading the model", lambda: ["the size of the model"], "nothing was trained"
        ):
            self.model = load_model(
                config.model, self.corpus.vocab_size, config.seed, config.weights_dtype()
            )
        attach(self.model, config.memory, config.attention.backend)
        for line in _unread(self.config, self.corpus, attached(self.model).plan):
            logger.warning(line)
        if line := _beyond_documents(self.config, self.corpus.train):
            logger.warning(line)
        start_memory(self.model, config.model, trains=config.trainer.max_steps != 0)
        self.device = torch.device(device_type(settings))
        self.precision = chosen_precision(settings)
        if self.config.trainer.steps == 0 and settings.precision == "auto":
            half = self.model.dtype in (torch.bfloat16, torch.float16)
            self.precision = own_precision(self.model) if half else self.precision
        self.weights_dtype = WEIGHTS.get(self.precision, self.model.dtype)
        mixed = self.precision == "bf16-mixed"
        dtype = torch.bfloat16 if mixed else self.weights_dtype
        plan = attached(self.model).plan
        # before anything is written; a backend that is named may lack a kernel here
        learns = self.config.trainer.steps > 0
        choose(config.attention.backend, plan, self.device, dtype, learns=learns)
        longest = max(_longest(self.corpus.train), _longest(self.corpus.validation))
        self.state_bytes = state_bytes_per_row(self.model, longest, dtype)
        asked = config.evaluation
        held_out = Sample(self.corpus.validation, asked.documents, asked.max_tokens)
        require_fit(
            self.config,
            self.model,
            trained=_lengths(self.corpus.train) if self.config.trainer.steps else [],
            held_out=_lengths(held_out),
            device=self.device,
            dtype=dtype,
            processes=num_devices(settings),
        )

    def to_the_end(self) -> None:
        """Train, evaluate, record."""
        checkpoints = self.path / CHECKPOINTS
        checkpoint, config = self.checkpoint, self.config
        self.announce(self.headline(checkpoint))
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
                set_aside(checkpoints, checkpoint)
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
            with memory_told("training", lambda: training_knobs(self.config), then):
                self.fit(trainer, checkpoint)
            if not trainer.is_global_zero:
                return
            early = None if validation is None else validation.why_stopped()
            over = early or trainer.global_step >= self.config.trainer.steps
            if not over or self.stop.received:
                again = "the same command" if config.resume == "auto" else again
                self.announce(
                    f"stopped after step {trainer.global_step}; {again} continues the run"
                )
                # Another process may be the one that received the signal.
                raise SystemExit(128 + (self.stop.received or signal.SIGTERM))
            if early:
                self.announce(f"{'stopped early':<18} after step {trainer.global_step}: {early}")
            then = f"continue with {again} evaluation.batch_size=1"
            with memory_told("evaluating", lambda: evaluation_knobs(self.config), then):
                file.settle()
                result = self.result(metrics, trainer.global_step, validation)
            result["metrics_lost"] = file.lost
            write_result(self.path, result, (FILE_NAME, METRICS, MODEL))
            # Only then: a server that does not answer must not cost the result.
            for each in loggers:
                each.log(eval_values(result["evaluation"]), trainer.global_step)
                if command := each.finish(True):
                    self.announce(f"{'W&B':<18} to send it: {command}")

    def headline(self, checkpoint: Path | None) -> str:
        """Return what is about to run, in a block of lines."""
        config, memory = self.config, self.config.memory
        lines = {
            "method": config.method.name,
            **{f"memory.{d}": memory.label(d) for d in DIMENSIONS},
            "model": f"{num_parameters(self.model):,} parameters, {self.model.config.model_type}",
            "corpus": self.corpus.summary(),
            **self.training(),
            "state": f"{self.state_bytes:,} bytes per row",
            "folder": str(self.path),
        }
        if job := slurm_job(os.environ):
            times = counted(job["restarts"], "time")
            lines["Slurm"] = f"job {job['id']}" + (
                f", restarted {times}" if job["restarts"] else ""
            )
        if sent := describe_wandb(config.logger):
            lines["W&B"] = sent
        if checkpoint is not None:
            lines["resumes"] = f"{checkpoint.name}"
        elif self.folder.begun:
            lines["resumes"] = "from the beginning, because there is no checkpoint"
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())

    def training(self) -> dict[str, str]:
        """Return what decides the size of an update, and in which precision all is computed."""
        settings = self.config.trainer
        weights = f"{self.precision}, {dtype_name(self.weights_dtype)} weights"
        if settings.steps == 0:
            return {"training": "none", "precision": weights}
        own = settings.learning_rate == self.config.model.learning_rate
        whose = ", the model's own" if own else ""
        rate = f"{settings.steps} steps, learning rate {settings.learning_rate:g}{whose}"
        return {"training": rate, "precision": weights}

    def loggers(self) -> list[RunLogger]:
        """Start the loggers, in the first process."""
        if (rank_zero_only.rank or 0) > 0:
            return []
        facts = {
            "parameters": num_parameters(self.model),
            "state_bytes_per_row": self.state_bytes,
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
            ProcessState(self.corpus.digest, settings_digest(self.record), file, self.announce),
            Checkpoints(self.path / CHECKPOINTS, settings, self.stop),
        ]
        if on_terminal():
            callbacks.append(ProgressBar(metrics))
        return Trainer(
            accelerator=self.device.type,
            devices=num_devices(settings),
            num_nodes=settings.num_nodes,
            strategy=chosen_strategy(settings, self.model),
            precision=cast(Any, self.precision),
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
        with told_if_lost(trainer.world_size), refused_unless_restored(checkpoint, trainer):
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
        cast(torch.nn.Module, self.model).to(self.device)
        evaluation = evaluate_all(
            self.model,
            self.corpus,
            segment_length=self.config.memory.segment_length,
            settings=self.config.evaluation,
            folder=self.path,
            precision=self.precision,
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
            "state_bytes_per_row": self.state_bytes,
            "tokens_seen": metrics.tokens_seen,
            "tokens_per_second": metrics.tokens_per_second,
            "training_seconds": metrics.seconds,
            "seconds": time.perf_counter() - self.began,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "peak_memory_bytes": peak_memory_bytes(),
            "precision": self.precision,
            "weights_dtype": dtype_name(self.weights_dtype),
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
        self.announce(f"{'weights':<18} the best, after step {step} of {steps}")
        return {"which": "best", "step": step}


def _with_steps(config: Config, documents: Documents) -> Config:
    """Count the steps of an epoch if `max_steps` is null: as many as read every segment once."""
    settings = config.trainer
    if settings.max_steps is not None:
        return config
    length = config.memory.segment_length
    segments = sum(-(-documents.length(i) // length) for i in range(len(documents)))
    rows = settings.batch_size * num_devices(settings) * settings.num_nodes
    steps = -(-segments // (rows * config.segments_per_step() * settings.accumulate))
    trainer = settings.model_copy(update={"max_steps": steps})
    return config.model_copy(update={"trainer": trainer})


def _unread(config: Config, corpus: Corpus, plan: MemoryPlan) -> list[str]:
    """Return warnings if memory is read in few or none of the training or held-out documents."""
    if not remembers(plan) or hasattr(config.data, "length"):  # a generated corpus's was known
        return []
    settings, kind = config.evaluation, config.data.kind
    held_out = Sample(corpus.validation, settings.documents, settings.max_tokens)
    splits: list[tuple[str, Documents]] = [(f"held-out document of data={kind}", held_out)]
    if config.trainer.steps:
        splits.append((f"training document of data={kind}", corpus.train))
    found = (
        unread([texts.length(i) for i in range(len(texts))], plan.segment_length, what)
        for what, texts in splits
    )
    return [line for line in found if line is not None]


def _beyond_documents(config: Config, documents: Documents) -> str | None:
    """Return a warning if bptt_segments is more than any document has, else None."""
    reach, length = config.memory.bptt_segments, config.memory.segment_length
    most = -(-_longest(documents) // length)
    if not config.trainer.steps or reach < most or most == 1:  # one segment is told elsewhere
        return None
    return (
        f"memory.bptt_segments={reach}: the longest document to train on has "
        f"{counted(most, 'segment')}, so gradient reaches {most - 1} back at most; a step still "
        f"reads {counted(config.segments_per_step(), 'segment')} of each row, of one document "
        f"after another: set memory.bptt_segments={most - 1}"
    )


def _longest(documents: Documents) -> int:
    return max(_lengths(documents))


def _lengths(documents: Documents) -> list[int]:
    return [documents.length(i) for i in range(len(documents))]


def _silent(line: str) -> None:
    """Print nothing: only the first process prints."""
