"""How fast runs were that are finished: FLOPs a second, by which others are estimated."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unimem.config import Config
from unimem.runs.layout import RESULT
from unimem.runs.records import read_result
from unimem.studies.estimate.flops import flops_per_token
from unimem.studies.estimate.model_size import model_shape

logger = logging.getLogger(__name__)

_OF_TRAINING = (
    "batch_size", "accumulate", "precision", "gradient_checkpointing", "accelerator", "strategy",
    "devices", "num_nodes", "threads",
)  # fmt: skip
"""What of `trainer` decides how long a step takes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished run.

    Args:
        config: its settings.
        parameters: of its model, those of memory included.
        training: FLOPs a second while it trained; None if it did not.
        reading: FLOPs a second of what it did beside: reading, bounds, intervals.
    """

    config: Config
    parameters: int
    training: float | None
    reading: float | None


def measured_runs(output: Path) -> list[Measured]:
    """Read the finished runs under `output`; those of another version are left out."""
    found: list[Measured | None] = []
    for path in output.glob(f"*/*/{RESULT}"):
        try:
            result = read_result(path.parent)
            if "run" not in result:  # an evaluation of another time
                found.append(_measured(result))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            logger.warning("an estimate goes without %s (%s)", path, error)
    return [run for run in found if run is not None]


def training_rate(runs: Sequence[Measured], config: Config, parameters: int) -> float | None:
    """Return the FLOPs a second of runs with the same model, options and trainer, if there are."""
    wanted = _training_key(config, parameters)
    alike = [run for run in runs if _training_key(run.config, run.parameters) == wanted]
    return _mean([(run.config, run.training) for run in alike], config)


def reading_rate(runs: Sequence[Measured], config: Config, parameters: int) -> float | None:
    """Return the FLOPs a second of runs that read as `config` does, if there are."""
    wanted = _reading_key(config, parameters)
    alike = [run for run in runs if _reading_key(run.config, run.parameters) == wanted]
    return _mean([(run.config, run.reading) for run in alike], config)


def _mean(found: Sequence[tuple[Config, float | None]], config: Config) -> float | None:
    """Average the rates, of runs with the very same budgets if there are such."""
    rates = [(other, rate) for other, rate in found if rate is not None]
    same = [rate for other, rate in rates if other.memory.flat() == config.memory.flat()]
    chosen = same or [rate for _, rate in rates]
    return sum(chosen) / len(chosen) if chosen else None


def _training_key(config: Config, parameters: int) -> tuple[Any, ...]:
    settings = config.trainer
    own = [getattr(settings, name) for name in _OF_TRAINING]
    return (*_model_key(config, parameters), config.segments_per_step(), *own)


def _reading_key(config: Config, parameters: int) -> tuple[Any, ...]:
    settings, trainer = config.evaluation, config.trainer
    own = (settings.batch_size, settings.segments_per_call, trainer.accelerator, trainer.threads)
    return (*_model_key(config, parameters), *own)


def _model_key(config: Config, parameters: int) -> tuple[Any, ...]:
    memory = config.memory
    return parameters, config.method.name, memory.label(), memory.segment_length


def _measured(result: dict[str, Any]) -> Measured | None:
    try:
        config = Config.model_validate(result["config"])
    except ValidationError:
        return None
    evaluation, parameters = result["evaluation"], result["parameters"]
    shape = model_shape(config, vocab_size=0, parameters=parameters)
    if shape is None:
        return None
    of_memory = shape.with_memory(config) - shape.parameters
    shape = replace(shape, parameters=parameters - of_memory)
    cost = flops_per_token(config, shape, evaluation["tokens"] / evaluation["documents"])
    trained = result["tokens_seen"]
    read = evaluation["tokens"] * len(evaluation["scores"])
    training = result["training_seconds"]
    rest = result["seconds"] - training
    return Measured(
        config=config,
        parameters=parameters,
        training=3 * cost * trained / training if trained and training > 0 else None,
        # Of a run that was continued only the last process's seconds are known.
        reading=cost * read / rest if rest > 0 else None,
    )
