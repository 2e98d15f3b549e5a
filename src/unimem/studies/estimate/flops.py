"""What a run has to do: tokens, FLOPs and bytes, from its settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from unimem.config import Config
from unimem.data.documents import Corpus, Documents
from unimem.evaluation.sample import Sample
from unimem.memory.plan import MemoryPlan
from unimem.runs.signature import corpus_of
from unimem.settings import TrainerSettings
from unimem.studies.cells import Cell
from unimem.studies.estimate.model_size import Shape, shape_of

TYPICAL = {"pg19": (100_000, 28_602, 50), "github": (5_000, 50_000, 500)}
"""Tokens of a document, documents to train on and held out, where the corpus is not there yet."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run takes.

    Args:
        shape: of its model.
        parameters: of model and memory.
        trained: tokens to train on.
        read: held-out tokens to read, once for each control.
        training: FLOPs.
        reading: FLOPs.
        weight_bytes: weights, and if they are trained gradients and the optimizer's state; on each
            device.
        state_bytes: what the rows of a batch remember, on each device.
    """

    shape: Shape
    parameters: int
    trained: int
    read: int
    training: float
    reading: float
    weight_bytes: float
    state_bytes: float


def work_of(cell: Cell, gpus: int) -> Work | None:
    """Return the work of a run on a machine with so many GPUs; None if its model is unknown."""
    config = cell.config
    devices = num_devices(config.trainer, gpus)
    corpus = None if cell.problem else corpus_of(config.data)
    shape = shape_of(cell, 0 if corpus is None else corpus.vocab_size)
    if shape is None:
        return None
    lengths = _held_out(config, corpus)
    length = sum(lengths) / len(lengths)
    cost = flops_per_token(config, shape, length)
    trained = _tokens_trained(config, corpus, devices)
    readings, rows = _readings(config, shape, len(lengths))
    read = readings * sum(lengths)
    parameters = shape.with_memory(config)
    precision = config.trainer.precision
    half = precision == "bf16-true" or config.weights_dtype() in ("bfloat16", "float16")
    mixed = precision == "bf16-mixed" or (precision == "auto" and on_gpu(config.trainer, gpus))
    # Weights; to train, as much for the gradient, and twice as much for AdamW's moments.
    weights = parameters * (2 if half else 4) * (4 if trained else 1)
    shards = devices * config.trainer.num_nodes if config.trainer.strategy == "fsdp" else 1
    rows = max(rows, config.trainer.batch_size if trained else 0)
    return Work(
        shape=shape,
        parameters=parameters,
        trained=trained,
        read=read,
        # The backward pass costs twice the forward pass.
        training=3 * cost * trained,
        reading=cost * read,
        weight_bytes=weights / shards,
        state_bytes=rows * _state_bytes(config, shape, max(lengths), 2 if half or mixed else 4),
    )


def flops_per_token(config: Config, shape: Shape, length: float) -> float:
    """Return the FLOPs of a forward pass for each token of documents of so many tokens.

    Two for every parameter, soft and inserted tokens counted as tokens, and attention over the
    slots that the memory holds on average. Attention within a segment is left out.
    """
    plan = config.memory.plan(shape.layers)
    more = 0.0
    if plan.soft is not None:
        # before there is a summary the learned tokens stand in its place
        kept = _mean(plan, length, lambda read: max(1, _summaries(plan, read)))
        more = (kept + 1) * plan.soft.num_soft_tokens
    if plan.inserting is not None:
        more += len(plan.inserting.inserts(plan.segment_length))
    parameters = shape.with_memory(config) * (1 + more / plan.segment_length)
    slots = _mean(plan, length, lambda read: sum(_slots(plan, read)))
    return 2 * parameters + 4 * shape.query_width * slots


def num_devices(settings: TrainerSettings, gpus: int) -> int:
    """Count the processes of a run on each node; `auto` is one without GPUs."""
    if settings.devices != "auto":
        return settings.devices
    return max(1, gpus) if settings.accelerator != "cpu" else 1


def on_gpu(settings: TrainerSettings, gpus: int) -> bool:
    """Whether a run is for a GPU: it asks for one, or takes one that is there."""
    return settings.accelerator == "gpu" or (settings.accelerator == "auto" and gpus > 0)


def _tokens_trained(config: Config, corpus: Corpus | None, devices: int) -> int:
    """Count the tokens to train on; padding is none of them."""
    lengths = _typical(config, "train") if corpus is None else _lengths(corpus.train)
    settings = config.trainer
    if settings.max_steps is None:
        return sum(lengths)
    rows = settings.batch_size * devices * settings.num_nodes * settings.accumulate
    segments = sum(-(-length // config.memory.segment_length) for length in lengths)
    read = settings.max_steps * rows * config.segments_per_step()
    return round(read * sum(lengths) / segments)


def _held_out(config: Config, corpus: Corpus | None) -> list[int]:
    settings = config.evaluation
    if corpus is not None:
        return _lengths(Sample(corpus.validation, settings.documents, settings.max_tokens))
    lengths = _typical(config, "validation")[: settings.documents]
    return [min(x, settings.max_tokens or x) for x in lengths]


def _typical(config: Config, split: Literal["train", "validation"]) -> list[int]:
    """Guess the documents of a corpus that is not there."""
    data = config.data
    length, train, validation = TYPICAL.get(data.kind, (5_000, 1_000, 100))
    if split == "train":
        return [length] * (data.train_documents or train)
    return [length] * (data.validation_documents or validation)


def _readings(config: Config, shape: Shape, documents: int) -> tuple[int, int]:
    """Return how often every document is read, and how many side by side."""
    rows = min(config.evaluation.batch_size, documents)
    plan = config.memory.plan(shape.layers)
    if not config.evaluation.controls or not (plan.layers or plan.soft):
        return 1, rows
    return (3 if rows > 1 else 2), rows


def _state_bytes(config: Config, shape: Shape, longest: int, number: int) -> float:
    """Return what one row remembers at most: keys and values, each slot's place, and soft tokens.

    `number` is the bytes of one. Matrices and notes are left out.
    """
    plan = config.memory.plan(shape.layers)
    summaries = 0.0
    if plan.soft is not None:
        tokens = plan.soft.num_soft_tokens * _summaries(plan, longest)
        summaries = tokens * shape.width * number
    return sum(_slots(plan, longest)) * (2 * shape.key_width * number + 8) + summaries


def _slots(plan: MemoryPlan, read: int) -> list[int]:
    """Return how many slots each layer holds after so many tokens of a document."""
    return [layer.most_slots(read, plan.segment_length) for layer in plan.layers.values()]


def _summaries(plan: MemoryPlan, read: int) -> int:
    """Return how many summaries are kept at the input after so many tokens of a document."""
    assert plan.soft is not None
    written = -(-read // plan.segment_length)
    return written if plan.soft.soft_segments is None else min(written, plan.soft.soft_segments)


def _mean(plan: MemoryPlan, length: float, held: Callable[[int], int]) -> float:
    """Average over the segments of a document what is held when each is read."""
    starts = range(0, max(1, round(length)), plan.segment_length)
    return sum(held(start) for start in starts) / len(starts)


def _lengths(documents: Documents) -> list[int]:
    return [documents.length(i) for i in range(len(documents))]
