"""Which settings of a model's configuration reading by segments honours, and which it refuses.

A decoder computes with its own modules whatever they compute: projections, norms, activations. Of
what attention itself does, the causal mask, sliding windows and rotary tables that are fixed
functions of a position are honoured; everything else is refused, never passed over.
"""

from collections.abc import Mapping
from typing import Any, cast

from transformers import PreTrainedModel

from unimem.memory.plan import MemoryPlan

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

FIXED_TABLES = ("default", "linear", "llama3", "yarn")
"""Rotary tables in which a position's angles depend on that position alone."""

LIFT = (
    "model.sliding_window=null (in Python: unimem.model.supported.lift_windows(model) before "
    "attach) lets every layer see all that memory shows"
)


def head_size(model: PreTrainedModel) -> int:
    """Return the size of an attention head."""
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def require_supported(model: PreTrainedModel) -> None:
    """Refuse a model whose attention differs from causal attention by segments.

    Raises ValueError that names the setting, its value and what to do.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type={config.model_type!r} is not supported; "
            f"choose one of {', '.join(FAMILIES)}"
        )
    if dropout := getattr(config, "attention_dropout", 0.0):
        raise ValueError(
            f"attention_dropout={dropout} is not supported with memory; set it to 0 in the "
            "model's config.json"
        )
    if not getattr(config, "is_causal", True):
        raise ValueError(
            "is_causal=False is not supported: segments are read from left to right; "
            "set it to true in the model's config.json, or use a causal model"
        )
    rotary = cast(Any, model.base_model).rotary_emb
    rotary = getattr(rotary, "inner", rotary)
    kind = getattr(rotary, "rope_type", "default")
    if kind not in FIXED_TABLES:
        raise ValueError(
            f"rope_type={kind} is not supported: its rotary angles depend on the length of the "
            "whole text, and a segment does not show that; use a model whose rope_parameters "
            f"have a rope_type of {', '.join(FIXED_TABLES)}"
        )
    rotated, size = 2 * rotary.inv_freq.numel(), head_size(model)
    if rotated != size:
        raise ValueError(
            f"the rotary embedding turns {rotated} of the {size} numbers of a head "
            "(partial_rotary_factor), which is not supported; use a model that turns all"
        )
    sliding_windows(model)


def sliding_windows(model: PreTrainedModel) -> dict[int, int]:
    """Return the sliding window of each layer that has one: a query sees tokens less than it back.

    Mistral has one window for all layers, Qwen one in the layers that `layer_types` names, LLaMA
    none. Raises ValueError for layers whose attention is of another kind.
    """
    config = model.config
    window, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if config.model_type == "llama":
        return {}
    if config.model_type == "mistral":
        kinds = ["full_attention" if window is None else "sliding_attention"] * layers
    else:
        kinds = cast(list[str], config.layer_types)[:layers]
    for layer, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(
                f"layer_types[{layer}]={kind} is not supported with memory; "
                "use a model of full_attention and sliding_attention"
            )
        if kind == "sliding_attention" and window is None:
            raise ValueError(
                f"layer_types[{layer}]=sliding_attention, but sliding_window is null; "
                "give the window in the model's config.json"
            )
    return {i: cast(int, window) for i, kind in enumerate(kinds) if kind == "sliding_attention"}


def lift_windows(model: PreTrainedModel) -> PreTrainedModel:
    """Let every layer of a model attend without a sliding window, in place; returns the model.

    To be called before memory is attached. The configuration says so wherever it is saved.
    """
    config = model.config
    if getattr(config, "sliding_window", None) is None:
        return model
    config.sliding_window = None
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = False
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * len(config.layer_types)
    if hasattr(model.base_model, "has_sliding_layers"):
        cast(Any, model.base_model).has_sliding_layers = False
    return model


def window_remark(plan: MemoryPlan, windows: Mapping[int, int]) -> str | None:
    """Return which layers read their memory through a sliding window; None if none does.

    Raises ValueError if what such a layer reads has no place that a window could be measured to.
    """
    narrow = {layer: windows[layer] for layer in plan.layers if layer in windows}
    for layer, window in narrow.items():
        if merging := [o for o in plan.layers[layer].options if o.merges]:
            raise ValueError(
                f"layer {layer} of the model has sliding_window={window}, but "
                f"{merging[0].label} merges tokens into one, of which none can be left out; {LIFT}"
            )
    if not narrow:
        return None
    shown = "all layers" if len(narrow) == len(plan.layers) else f"layers {list(narrow)}"
    widths = sorted(set(narrow.values()))
    return (
        f"{shown} with memory: the model's sliding_window={', '.join(map(str, widths))} holds for "
        f"memory too, which is read no more than {max(widths) - 1} tokens back; {LIFT}"
    )
