"""A composed configuration, checked: types, ranges, combinations."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any, cast

from omegaconf import DictConfig
from pydantic import (
    ValidationError,
)

from unimem.config.composition import compose_node
from unimem.config.errors import ConfigError, report
from unimem.config.schema import Config
from unimem.config.values import resolve
from unimem.memory.registry import PlanError
from unimem.memory.settings import MemorySettings
from unimem.memory.unread import unread
from unimem.settings import (
    describe,
)
from unimem.words import counted

logger = logging.getLogger(__name__)


def compose(*overrides: str) -> Config:
    """Compose and validate a configuration as `unimem-train` does with the same arguments.

    Raises `ConfigError` with all problems at once.
    """
    return validate(compose_node("train", overrides))


def validate(node: DictConfig) -> Config:
    """Check types, ranges and combinations of a composed configuration.

    Raises `ConfigError` with one line for each problem.
    """
    values = resolve(node)
    config = check(values)
    if config.logger.tensorboard and not find_spec("tensorboard"):
        raise ConfigError(
            "logger=tensorboard needs tensorboard: pip install '.[tensorboard]' in the folder of "
            "this project, or leave it out; logger=csv needs nothing"
        )
    return config


def check(values: dict[str, Any]) -> Config:
    """Check plain values, as `resolve` gives them and a run records them.

    Raises `ConfigError` with one line for each problem.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems = _lines(error) + _plan_problems(values["memory"], None)
        raise ConfigError(report(list(dict.fromkeys(problems)))) from None
    try:
        layers = config.num_layers()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    problems = _plan_problems(values["memory"], layers)
    if problems:
        raise ConfigError(report(problems))
    plan = config.memory.plan(layers)
    if refusal := plan.refusal(config.attention.backend):
        raise ConfigError(refusal)
    for remark in plan.remarks:
        logger.warning(remark)
    remembers = bool(plan.layers or plan.soft)
    per_step, reach = config.segments_per_step(), plan.bptt_segments
    if remembers and config.trainer.max_steps != 0 and per_step <= reach:
        logger.warning(
            f"trainer.segments_per_step={per_step}: a step reads {counted(per_step, 'segment')}, "
            f"so gradient reaches {per_step - 1} back at most, not memory.bptt_segments={reach}; "
            f"leave it out, or set it to {reach + 1}"
        )
    length = getattr(config.data, "length", None)
    if length is not None and remembers:
        line = unread_by_length(config, length)
        if line is not None:
            logger.warning(line)
    return config


def unread_by_length(config: Config, length: int) -> str | None:
    """Return a warning if no document of `length` tokens ever reads memory, else None."""
    segment, most = config.memory.segment_length, config.evaluation.max_tokens
    return unread([length], segment, f"document of data={config.data.kind}") or (
        unread(
            [min(length, most)], segment, f"held-out document, cut at evaluation.max_tokens={most},"
        )
        if most is not None
        else None
    )


def _plan_problems(memory: dict[str, Any], num_layers: int | None) -> list[str]:
    """Return what is wrong with the budgets and layers of the options."""
    try:
        MemorySettings.model_validate(memory).plan(num_layers)
    except ValidationError:
        return []
    except PlanError as error:
        return list(error.problems)
    return []


def _lines(error: ValidationError) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, PlanError):
            lines += cause.problems
        else:
            lines.append(describe(cast(dict[str, Any], item)))
    return lines
