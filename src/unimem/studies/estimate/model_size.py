"""How large the model of a run is, before it is made: counted, or guessed from what is known."""

import math
from dataclasses import dataclass
from typing import Any

from unimem.config import Config
from unimem.settings import PretrainedModel, ScratchModel
from unimem.studies.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder.

    Args:
        parameters: of the decoder, without what memory adds.
        layers: how many.
        heads: of queries, in a layer.
        kv_heads: of keys and values, in a layer.
        width: of a token's vector.
        query_width: of all queries of a token in a layer.
        key_width: of all keys of a token in a layer.
    """

    parameters: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    query_width: int
    key_width: int

    def with_memory(self, config: Config) -> int:
        """Count the parameters, those that memory adds included."""
        shapes = config.memory.plan(self.layers).weight_shapes(
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.key_width // self.kv_heads,
        )
        return self.parameters + sum(math.prod(shape) for shape in shapes.values())


def shape_of(cell: Cell, vocab_size: int) -> Shape | None:
    """Return the shape of a cell's model; None if nothing is known of it without the hub.

    A model of a folder is counted as a LLaMA; of one from the hub the widths follow from
    `model.parameters` and `model.num_layers`, as if it had no grouped heads.
    """
    return model_shape(cell.first().config, vocab_size)


def model_shape(config: Config, vocab_size: int, parameters: int | None = None) -> Shape | None:
    """Return the shape of the model that the settings name; `parameters` if they are known."""
    model = config.model
    if isinstance(model, ScratchModel):
        return _llama(
            layers=model.num_layers,
            width=model.hidden_size,
            inner=model.intermediate_size,
            heads=model.num_heads,
            kv_heads=model.num_kv_heads,
            head=model.hidden_size // model.num_heads,
            embeddings=vocab_size * (1 if model.tie_embeddings else 2),
        )
    found = model.known_config()
    if found is None:
        return _guess(model, parameters)
    try:
        return _of_file(found)
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # no decoder; what is wrong with it is told when it is loaded


def _of_file(config: dict[str, Any]) -> Shape:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    tied = config.get("tie_word_embeddings", False)
    return _llama(
        layers=config["num_hidden_layers"],
        width=width,
        inner=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head=config.get("head_dim") or width // heads,
        embeddings=config["vocab_size"] * (1 if tied else 2),
    )


def _llama(
    *, layers: int, width: int, inner: int, heads: int, kv_heads: int, head: int, embeddings: int
) -> Shape:
    queries, keys = heads * head, kv_heads * head
    layer = 2 * width * queries + 2 * width * keys + 3 * width * inner + 2 * width
    return Shape(
        parameters=embeddings * width + layers * layer + width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        query_width=queries,
        key_width=keys,
    )


def _guess(model: PretrainedModel, parameters: int | None) -> Shape | None:
    parameters = parameters or model.parameters
    if parameters is None or model.num_layers is None:
        return None
    # A layer of the usual proportions holds twelve times the square of its width.
    width = round(math.sqrt(parameters / (12 * model.num_layers)))
    return Shape(
        parameters=parameters,
        layers=model.num_layers,
        heads=max(1, width // 64),
        kv_heads=max(1, width // 64),
        width=width,
        query_width=width,
        key_width=width,
    )
