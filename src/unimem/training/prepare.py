"""What a run builds and checks before it trains: corpus, model, memory, device, precision."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from transformers import PreTrainedModel

from unimem.attention.backend import choose
from unimem.config import Config
from unimem.data.build import build_corpus
from unimem.data.documents import Corpus, Documents
from unimem.evaluation.run import remembers
from unimem.evaluation.sample import Sample
from unimem.memory.plan import MemoryPlan
from unimem.memory.registry import DIMENSIONS
from unimem.memory.unread import unread
from unimem.model.attach import attach, attached
from unimem.model.load import load_model
from unimem.model.precision import WEIGHTS, dtype_name, own_precision
from unimem.runs.continued import settings_digest
from unimem.runs.layout import CHECKPOINTS
from unimem.runs.signature import require_cell
from unimem.settings import PretrainedModel
from unimem.training.checkpoint import (
    newest_valid,
)
from unimem.training.devices import (
    chosen_precision,
    device_type,
    num_devices,
)
from unimem.training.fits import require_fit
from unimem.training.footprint import num_parameters, state_bytes_per_row
from unimem.training.launched import require_tasks, slurm_job, task_of
from unimem.training.loggers import (
    describe_wandb,
)
from unimem.training.out_of_memory import (
    CORPUS_KNOBS,
    explain_oom,
)
from unimem.training.resume import (
    require_same_run,
)
from unimem.training.start_weights import load_start_weights
from unimem.training.vocabulary import require_vocabulary
from unimem.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs before anything is written or trained."""

    config: Config
    """The settings, with the number of steps of an epoch filled in."""
    corpus: Corpus
    checkpoint: Path | None
    """The newest checkpoint that is whole, to continue from."""
    model: PreTrainedModel
    """The model with its memory attached."""
    device: torch.device
    precision: str
    """Lightning's name of the precision."""
    weights_dtype: torch.dtype
    state_bytes: int
    """The largest state of one row, in bytes."""


def prepare(config: Config, path: Path) -> Prepared:
    """Build the corpus, load the model and attach memory; log warnings about the settings.

    `path` is the run's folder.

    Raises:
        ValueError: the corpus, the checkpoint, the model and the settings do not fit together, or
            memory does not suffice.
    """
    settings = config.trainer
    require_tasks(task_of(os.environ), num_devices(settings), settings.num_nodes)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    seed_everything(config.seed, verbose=False)
    with explain_oom("building the corpus", lambda: CORPUS_KNOBS, "nothing was trained"):
        corpus = build_corpus(config.data)
    require_cell(config, path.name, corpus.digest)
    checkpoint = newest_valid(path / CHECKPOINTS)
    if checkpoint is not None:
        require_same_run(checkpoint, corpus.digest, settings_digest(config.record()))
    if isinstance(config.model, PretrainedModel):
        require_vocabulary(config.model.name, corpus, config.data)
    config = _with_steps(config, corpus.train)
    model = _load(config, corpus)
    plan = attached(model).plan
    lines = [*_unread(config, corpus, plan), _beyond_documents(config, corpus.train)]
    for line in filter(None, lines):
        logger.warning(line)
    learns = config.trainer.steps > 0
    load_start_weights(model, config.model, trains=learns)
    device, precision = torch.device(device_type(settings)), chosen_precision(settings)
    if not learns and settings.precision == "auto" and model.dtype in HALF:
        precision = own_precision(model)
    weights_dtype = WEIGHTS.get(precision, model.dtype)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else weights_dtype
    # Before anything is written: a backend that is named may lack a kernel here.
    choose(config.attention.backend, plan, device, dtype, learns=learns)
    longest = max(_longest(corpus.train), _longest(corpus.validation))
    held_out = Sample(corpus.validation, config.evaluation.documents, config.evaluation.max_tokens)
    require_fit(
        config,
        model,
        trained=_lengths(corpus.train) if learns else [],
        held_out=_lengths(held_out),
        device=device,
        dtype=dtype,
        processes=num_devices(settings),
    )
    return Prepared(
        config=config,
        corpus=corpus,
        checkpoint=checkpoint,
        model=model,
        device=device,
        precision=precision,
        weights_dtype=weights_dtype,
        state_bytes=state_bytes_per_row(model, longest, dtype),
    )


HALF = (torch.bfloat16, torch.float16)


def _load(config: Config, corpus: Corpus) -> PreTrainedModel:
    dtype = config.weights_dtype()
    with explain_oom("loading the model", lambda: ["the size of the model"], "nothing was trained"):
        model = load_model(config.model, corpus.vocab_size, config.seed, dtype)
    return attach(model, config.memory, config.attention.backend)


def headline(prepared: Prepared, path: Path, *, began: bool) -> str:
    """Return what is about to run, in a block of lines; `began` if the run is continued."""
    config, memory = prepared.config, prepared.config.memory
    lines = {
        "method": config.method.name,
        **{f"memory.{d}": memory.label(d) for d in DIMENSIONS},
        "model": f"{num_parameters(prepared.model):,} parameters, "
        f"{prepared.model.config.model_type}",
        "corpus": prepared.corpus.summary(),
        **_training(prepared),
        "state": f"{prepared.state_bytes:,} bytes per row",
        "folder": str(path),
    }
    if job := slurm_job(os.environ):
        times = counted(job["restarts"], "time")
        lines["Slurm"] = f"job {job['id']}" + (f", restarted {times}" if job["restarts"] else "")
    if sent := describe_wandb(config.logger):
        lines["W&B"] = sent
    if prepared.checkpoint is not None:
        lines["resumes"] = f"{prepared.checkpoint.name}"
    elif began:
        lines["resumes"] = "from the beginning, because there is no checkpoint"
    return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


def _training(prepared: Prepared) -> dict[str, str]:
    """Return the lines about the size of an update and the precision."""
    settings = prepared.config.trainer
    weights = f"{prepared.precision}, {dtype_name(prepared.weights_dtype)} weights"
    if settings.steps == 0:
        return {"training": "none", "precision": weights}
    own = settings.learning_rate == prepared.config.model.learning_rate
    whose = ", the model's own" if own else ""
    rate = f"{settings.steps} steps, learning rate {settings.learning_rate:g}{whose}"
    return {"training": rate, "precision": weights}


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
