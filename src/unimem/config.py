"""From overrides to a validated configuration, without torch: a typo answers in a second."""

from __future__ import annotations

import logging
from typing import Annotated, Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from unimem.data.settings import DataSettings
from unimem.memory.plan import PlanError, injected_layers
from unimem.memory.settings import MemorySettings
from unimem.paths import config_root
from unimem.settings import (
    EvaluationSettings,
    LoggerSettings,
    MethodSettings,
    ModelSettings,
    ScratchModel,
    Settings,
    TrainerSettings,
    describe,
)

logger = logging.getLogger(__name__)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$")]


class ConfigError(CompactHydraException, ValueError):
    """What is wrong with a configuration, one line for each problem."""


class Config(Settings):
    """Everything a run needs to know, checked."""

    seed: Annotated[int, Field(ge=0)]
    output: str
    study: Name
    name: Name | None
    resume: bool
    injection_layer: int | None
    method: MethodSettings
    memory: MemorySettings
    model: ModelSettings
    data: DataSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    logger: LoggerSettings

    def num_layers(self) -> int | None:
        """Say how many layers the model has, if that is known before it is loaded."""
        model = self.model
        return model.num_layers if isinstance(model, ScratchModel) else model.known_layers()

    def segments_per_step(self) -> int:
        """Say how many segments of a row one training step reads."""
        return self.trainer.segments_per_step or self.memory.bptt_segments + 1


def compose(*overrides: str) -> Config:
    """Compose and validate a configuration as `unimem-train` does with the same arguments.

    Raises `ConfigError` with all problems at once.
    """
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        try:
            node = hydra_compose("train", list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            cause = f"\n{error.__cause__}" if error.__cause__ else ""
            raise ConfigError(f"{error}{cause}") from None
    return validate(node)


def resolve(node: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into plain values, as they are recorded with a run."""
    try:
        container = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    values = cast(dict[str, Any], container)
    memory = values["memory"]
    layer = values["injection_layer"]
    if layer is not None:
        at_input = {k: v for k, v in memory["injection"].items() if k == "input"}
        memory["injection"] = {"single": layer, **at_input}
    elif "single" in memory["injection"]:
        raise ConfigError(
            "memory.injection=single needs injection_layer=N, the layer counted from 0"
        )
    preset = cast(dict[str, Any], values.pop("preset"))
    used = set(memory) | set(memory["injection"])
    for key in preset.keys() - used:
        logger.warning(
            "method=%s: its %s=%s is not used by the options chosen, and is dropped",
            values["method"]["name"],
            key,
            preset[key],
        )
    return values


def validate(node: DictConfig) -> Config:
    """Check types, ranges and combinations of a composed configuration.

    Raises `ConfigError` with one line for each problem.
    """
    values = resolve(node)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_report(_lines(error))) from None
    try:
        layers = config.num_layers()
        if layers is not None:
            config.memory.plan(layers)
        else:
            injected_layers(config.memory.injection, 1 << 30)
    except PlanError as error:
        raise ConfigError(_report(list(error.problems))) from None
    return config


def _lines(error: ValidationError) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, PlanError):
            lines += cause.problems
        else:
            lines.append(describe(cast(dict[str, Any], item)))
    return lines


def _report(lines: list[str]) -> str:
    return "\n".join(["invalid configuration:", *(f"  {line}" for line in lines)])
