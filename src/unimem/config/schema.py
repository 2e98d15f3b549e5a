"""The settings of a run and their types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    model_validator,
)

from unimem.data.settings import DataSettings
from unimem.memory.settings import MemorySettings
from unimem.settings import (
    AttentionSettings,
    EvaluationSettings,
    LoggerSettings,
    MethodSettings,
    ModelSettings,
    PretrainedModel,
    Settings,
    TrainerSettings,
    known_layers,
    parts,
)

NAME_RULE = (
    "a name has only letters a-z and A-Z, digits and . _ + -, begins with a letter, a digit or _, "
    "and has at most 128 characters"
)


def _is_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}", text):
        raise ValueError(NAME_RULE)
    return text


Name = Annotated[str, AfterValidator(_is_name)]
"""The name of a folder that a run or study makes."""


def _as_resume(value: Any) -> Any:
    known = {"true": True, "false": False, "auto": "auto"}
    if isinstance(value, bool | str) and str(value).lower() in known:
        return known[str(value).lower()]
    raise ValueError(
        "write true to continue the run of that name, auto to start it or continue it, or false"
    )


Resume = Annotated[bool | Literal["auto"], BeforeValidator(_as_resume)]
"""Whether a run is continued: `auto` starts it if it was not begun."""


class Config(Settings):
    """All settings of a run, validated."""

    seed: Annotated[int, Field(ge=0)]
    output: Annotated[str, Field(min_length=1)]
    study: Name
    name: Name | None
    resume: Resume
    method: MethodSettings
    memory: MemorySettings
    model: ModelSettings
    data: DataSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    logger: LoggerSettings
    attention: AttentionSettings = AttentionSettings()

    def record(self) -> dict[str, Any]:
        """Return the settings as plain values, as a run records them: those that were set."""
        return self.model_dump(exclude_unset=True)

    def num_layers(self) -> int | None:
        """Return the number of layers of the model, None if it is only known once it is loaded."""
        return known_layers(self.model)

    def segments_per_step(self) -> int:
        """Return the number of segments of a row that one training step reads."""
        return self.trainer.segments_per_step or self.memory.bptt_segments + 1

    def weights_dtype(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """Return the type in which the weights are loaded; `auto` is as they are stored.

        Weights of half precision lose most updates to rounding, so only `bf16-true` trains them.
        """
        if self.trainer.precision == "bf16-true" and self.trainer.max_steps != 0:
            return "bfloat16"
        if isinstance(self.model, PretrainedModel) and self.model.dtype != "auto":
            return self.model.dtype
        as_stored = isinstance(self.model, PretrainedModel) and self.trainer.max_steps == 0
        return "auto" if as_stored and self.trainer.precision == "auto" else "float32"

    @model_validator(mode="after")
    def _trains_whole_weights(self) -> Config:
        dtype = self.model.dtype if isinstance(self.model, PretrainedModel) else "auto"
        half = dtype in ("bfloat16", "float16")
        if half and self.trainer.max_steps != 0 and self.trainer.precision != "bf16-true":
            raise ValueError(
                f"model.dtype={dtype} would train weights of half precision, which lose most "
                "updates to rounding: leave model.dtype=auto, which trains float32 weights "
                "whatever the checkpoint holds, or set trainer.precision=bf16-true"
            )
        return self


def _declared(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a pydantic model and of nested models, with their types."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        yield f"{prefix}{name}", Annotated[annotation, *field.metadata, None]
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _declared(part, f"{prefix}{name}.")


def _settings() -> dict[str, tuple[Any, ...]]:
    found: dict[str, list[Any]] = {}
    for name, annotation in _declared(Config):
        found.setdefault(name, []).append(annotation)
    return {name: tuple(annotations) for name, annotations in found.items()}


SETTINGS = _settings()
"""The types of every setting by name, without the knobs of memory's options."""


def _is_text(annotations: Sequence[Any]) -> bool:
    kinds = {part for annotation in annotations for part in parts(annotation)}
    return str in kinds and not kinds & {int, float, bool}


TEXT_SETTINGS = frozenset(
    {*(k for k, v in SETTINGS.items() if _is_text(v)), "run", "base", "sweeps"}
)
"""Settings whose values stay text, also where they look like numbers: `name=2026`."""
