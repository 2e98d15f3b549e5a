"""What the command line of `unimem-bench` says, checked without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from unimem.bench.shapes import SHAPES
from unimem.paths import config_root
from unimem.runs.layout import RESULT
from unimem.settings import Backend, Count, Settings

What = Literal["step", "train_step", "document", "all", "gpu"]

CLUSTERED = "clustered"
RANDOM = "random"


def _listed(value: Any) -> Any:
    """Take a word for a list of one."""
    return [value] if isinstance(value, str) else value


class BenchSettings(Settings):
    """What is measured, and how."""

    shape: str
    methods: Annotated[list[str], Field(min_length=1)]
    sizes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    what: Annotated[list[What], Field(min_length=1), BeforeValidator(_listed)]
    repeats: Count
    threads: Count
    batch_size: Count
    segment_length: Count
    document_tokens: Annotated[int, Field(ge=2)]
    topk: Count | None
    keys: str
    dtype: Literal["float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda"]
    backend: Backend
    max_state_gb: Annotated[float, Field(gt=0)]
    output: str
    seed: Annotated[int, Field(ge=0)]

    @field_validator("shape")
    @classmethod
    def _known_shape(cls, shape: str) -> str:
        if shape not in SHAPES:
            raise ValueError(f"no such shape; choose from {', '.join(SHAPES)}")
        return shape

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: list[str]) -> list[str]:
        known = method_names()
        unknown = [method for method in methods if method not in known]
        if unknown:
            raise ValueError(f"{unknown[0]} is not a method; choose from {', '.join(known)}")
        return methods

    @field_validator("methods", "sizes", "what")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is named twice; name it once")
        return values

    @field_validator("keys")
    @classmethod
    def _source_exists(cls, keys: str) -> str:
        if keys not in (CLUSTERED, RANDOM) and not (Path(keys) / RESULT).is_file():
            raise ValueError(f"choose {CLUSTERED}, {RANDOM}, or the folder of a finished run")
        return keys

    @model_validator(mode="after")
    def _fits_together(self) -> BenchSettings:
        if len(self.what) > 1 and (alone := {"all", "gpu"} & set(self.what)):
            raise ValueError(f"what={self.what}: {min(alone)} stands alone; leave the others out")
        if self.what == ["gpu"] and self.device == "cpu":
            raise ValueError("what=gpu needs a CUDA GPU, but device=cpu; set device=auto")
        wants_model = [what for what in self.what if what in ("train_step", "document")]
        if wants_model and not SHAPES[self.shape].whole:
            whole = " or ".join(name for name, shape in SHAPES.items() if shape.whole)
            raise ValueError(
                f"what={wants_model[0]} needs a whole model, but shape={self.shape} is one layer; "
                f"set shape={whole}, or what=step"
            )
        return self

    def kinds(self) -> list[What]:
        """Spell out what is measured: `all` is all that the shape allows."""
        if self.what != ["all"]:
            return list(self.what)
        return ["step", "train_step", "document"] if SHAPES[self.shape].whole else ["step"]


def method_names() -> list[str]:
    """List the presets of `conf/method`."""
    names = sorted(file.stem for file in (config_root() / "conf" / "method").glob("*.yaml"))
    names.remove("custom")  # the absence of a preset
    return names
