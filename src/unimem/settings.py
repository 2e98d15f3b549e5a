"""The groups of a configuration beside memory and data: model, trainer, evaluation, logger.

Defaults live in the yaml files of `conf/`, one comment a line; here are types and ranges only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
MOST_LAYERS = 10_000
"""More layers than any decoder has; building so many would take hours before the weights are
found not to fit."""
Backend = Literal["auto", "reference", "sdpa", "flex", "flash"]


class Settings(BaseModel):
    """Strict, frozen, and closed to unknown keys, to infinities and to NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ScratchModel(Settings):
    """A LLaMA with random weights; its vocabulary is the corpus's."""

    kind: Literal["scratch"]
    num_layers: Count
    hidden_size: Count
    intermediate_size: Count
    num_heads: Count
    num_kv_heads: Count
    rope_theta: Annotated[float, Field(gt=0)]
    tie_embeddings: bool
    learning_rate: Rate | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchModel:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}, "
                f"which must divide hidden_size={self.hidden_size}"
            )
        return self


class PretrainedModel(Settings):
    """A decoder in the Hugging Face format: a hub id or a local folder."""

    kind: Literal["pretrained"]
    name: str
    revision: str | None
    num_layers: Count | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    tokenizer: str
    parameters: Count | None
    sliding_window: Literal["keep"] | None = "keep"
    learning_rate: Rate | None = None

    def known_layers(self) -> int | None:
        """Return the number of layers if it is known without the hub.

        Raises ValueError if config.json cannot be read, or says what no decoder has.
        """
        if self.num_layers is None and (config := self.known_config()) is not None:
            layers = config.get("num_hidden_layers")
            if layers is not None and layers not in range(1, MOST_LAYERS + 1):
                raise ValueError(
                    f"model.name={self.name}: config.json says num_hidden_layers={layers!r}; a "
                    f"decoder has 1 to {MOST_LAYERS} layers"
                )
            return layers
        return self.num_layers

    def known_config(self) -> dict[str, Any] | None:
        """Return the model's own configuration if its folder is here; None if it is not.

        Raises ValueError if there is a file that cannot be read.
        """
        file = Path(self.name) / "config.json"
        try:
            if not file.is_file():
                return None
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(f"model.name={self.name}: {file} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"model.name={self.name}: {file} is no JSON object")
        return cast(dict[str, Any], found)


ModelSettings = Annotated[ScratchModel | PretrainedModel, Field(discriminator="kind")]


def known_layers(model: ScratchModel | PretrainedModel) -> int | None:
    """Return how many layers a model has, if that is known before it is loaded."""
    return model.num_layers if isinstance(model, ScratchModel) else model.known_layers()


class TrainerSettings(Settings):
    """How a run trains."""

    max_steps: Annotated[int, Field(ge=0)] | None
    batch_size: Count
    segments_per_step: Count | None
    accumulate: Count
    learning_rate: Rate
    final_learning_rate: Share
    warmup_steps: Annotated[int, Field(ge=0)]
    schedule: Literal["cosine", "linear"]
    decay_share: Share
    weight_decay: Rate
    clip: Annotated[float, Field(gt=0)]
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"]
    gradient_checkpointing: bool
    compile: bool = False
    checkpoint_every: Count
    keep_checkpoints: Annotated[int, Field(ge=2)]
    log_every: Count
    validate_every: Count | None = None
    validation_documents: Count = 8
    patience: Count | None = None
    min_improvement: Rate = 0.0
    keep_best: bool = False
    accelerator: Literal["auto", "cpu", "gpu"]
    strategy: Literal["auto", "ddp", "fsdp"]
    devices: Count | Literal["auto"]
    num_nodes: Count
    threads: Count | None

    @model_validator(mode="after")
    def _validates(self) -> TrainerSettings:
        wanted = {"patience": self.patience is not None, "keep_best": self.keep_best}
        if self.validate_every is None and (given := [k for k, v in wanted.items() if v]):
            raise ValueError(
                f"{' and '.join(given)} need validate_every, the optimizer steps between "
                "validations; set trainer.validate_every=50, say"
            )
        if self.validate_every is not None and self.strategy == "fsdp":
            raise ValueError(
                "validate_every: with strategy=fsdp no process has all weights to read documents "
                "with; set trainer.validate_every=null, or trainer.strategy=ddp"
            )
        return self

    @property
    def steps(self) -> int:
        """`max_steps`, once it is known: an epoch's are counted when the corpus is there."""
        assert self.max_steps is not None
        return self.max_steps


class AttentionSettings(Settings):
    """How attention with memory is computed; every way gives the same numbers, up to rounding."""

    backend: Backend = "auto"


class EvaluationSettings(Settings):
    """How held-out documents are read."""

    batch_size: Count
    documents: Count | None
    max_tokens: Annotated[int, Field(ge=2)] | None
    controls: bool
    age_documents: Annotated[int, Field(ge=0)]
    segments_per_call: Count


class LoggerSettings(Settings):
    """Where a run's records go too; its own are always written.

    `mode` and what follows up to `finish_timeout` are of W&B. What has a default is absent in
    records of earlier versions.
    """

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str | None
    entity: str | None
    group: str | None
    tags: list[str] = []
    init_timeout: Count
    finish_timeout: Count = 10
    csv: bool = False
    tensorboard: bool = False


class MethodSettings(Settings):
    """What a preset says of itself."""

    name: str
    title: str
    paper: str
    exact: bool
    note: str


def parts(annotation: Any) -> Iterator[Any]:
    """Return the types of a union or of a list's entries, without what annotates them."""
    if get_origin(annotation) is Annotated:
        yield from parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType, list):
        for part in get_args(annotation):
            yield from parts(part)
    else:
        yield annotation


def as_declared(value: Any, annotations: Sequence[Any]) -> Any:
    """Write a number in the form that its setting declares: 1e3 as 1000, or 1 as 1.0.

    A value that is not such a number stays as it is.
    """
    if isinstance(value, list):
        return [as_declared(entry, annotations) for entry in cast(list[Any], value)]
    kinds = {part for annotation in annotations for part in parts(annotation)}
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return float(value) if int not in kinds and abs(value) < 2**53 else value
    return value


def describe(error: dict[str, Any], prefix: str = "") -> str:
    """Put one pydantic error into a line: path, what is wrong, what was given."""
    loc = [str(part) for part in error["loc"] if part not in ("scratch", "pretrained")]
    path = ".".join([prefix, *loc] if prefix else loc)
    message = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    text = repr(given)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    shown = "" if isinstance(given, dict | BaseModel) else f" (got {text})"
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"
