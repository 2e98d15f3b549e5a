"""The models that are measured, and the memory of a method in them; no torch is needed."""

from dataclasses import dataclass
from functools import cache
from typing import cast

from unimem.config import Config, compose
from unimem.settings import ScratchModel


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder with random weights.

    Args:
        overrides: that make it of the models in `conf/model`.
        vocabulary: token ids; one layer needs few.
        layers: that have memory where a method has it in some; None for those of its preset.
        document_layer: that has memory when a document is read.
        whole: whether it is a whole model, which can be trained and can read documents.
    """

    overrides: tuple[str, ...]
    vocabulary: int
    layers: tuple[int, ...] | None
    document_layer: int
    whole: bool

    def model(self) -> ScratchModel:
        """Return the model's settings."""
        return cast(ScratchModel, compose(*self.overrides, "method=vanilla").model)


def _llama(layers: int, width: int, inner: int, heads: int, kv_heads: int) -> tuple[str, ...]:
    return (
        "model=nano",
        f"model.num_layers={layers}",
        f"model.hidden_size={width}",
        f"model.intermediate_size={inner}",
        f"model.num_heads={heads}",
        f"model.num_kv_heads={kv_heads}",
    )


def _layer(overrides: tuple[str, ...]) -> Shape:
    return Shape(overrides=overrides, vocabulary=512, layers=(0,), document_layer=0, whole=False)


SHAPES = {
    "nano": Shape(
        overrides=("model=nano",), vocabulary=4096, layers=None, document_layer=11, whole=True
    ),
    "micro": Shape(
        overrides=("model=micro",), vocabulary=512, layers=(3,), document_layer=3, whole=True
    ),
    "tinyllama_layer": _layer(_llama(1, 2048, 5632, 32, 4)),
    "llama2_7b_layer": _layer(_llama(1, 4096, 11008, 32, 32)),
}
"""By name; TinyLLaMA-1.1B and LLaMA2-7B are measured by one of their layers."""

TINYLLAMA = Shape(
    overrides=_llama(22, 2048, 5632, 32, 4),
    vocabulary=32000,
    layers=None,
    document_layer=11,
    whole=True,
)
"""All of TinyLLaMA-1.1B, for a GPU."""


@cache
def _preset(method: str) -> Config:
    """Return a method as its preset says, in the model that presets are written for."""
    return compose(f"method={method}", "model=nano")


@cache
def configured(
    method: str,
    shape: Shape,
    *,
    size: int | None,
    segment_length: int,
    topk: int | None = None,
    document: bool = False,
) -> Config:
    """Return a method's configuration in a shape, with a memory of `size` tokens where it has one.

    None leaves the size of the preset; for 0, a memory that is empty when it is measured, there is
    room for one segment. `topk` replaces that
    of a method that has it; `document` puts memory into the shape's one layer for documents.

    Raises `ConfigError` if the method cannot have such a memory.
    """
    budgets = _preset(method).memory
    flat = budgets.flat()
    overrides = [
        f"method={method}",
        *shape.overrides,
        f"memory.segment_length={segment_length}",
        "trainer.learning_rate=0.0",  # every training step starts from the same weights
    ]
    if document:
        overrides.append(f"injection_layer={shape.document_layer}")
    elif shape.layers is not None and "layers" in budgets.injection:
        overrides.append(f"memory.injection.layers={list(shape.layers)}")
    if size is not None and "memory.size" in flat:
        overrides.append(f"memory.size={size or segment_length}")
    if topk is not None and "memory.topk" in flat:
        overrides.append(f"memory.topk={topk}")
    return compose(*overrides)
