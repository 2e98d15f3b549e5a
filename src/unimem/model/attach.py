"""Put the four dimensions of memory into a Hugging Face decoder: no fork, same weight names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from unimem.memory.plan import MemoryPlan
from unimem.memory.settings import MemorySettings
from unimem.model import attention
from unimem.model.rotary import IdentityRotary

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WEIGHTS_NAME = "memory.safetensors"
GATE_INIT = -2.0
"""Before its sigmoid: a gate starts at 0.12, so that a pretrained model starts nearly as it was."""


class AttachedMemory(nn.Module):
    """What memory adds to a model, under the name `memory`: its plan and its few weights.

    `soft_tokens` [n, E] exist with memory.writing=model_forward, `gates` [H] for each injected
    layer with memory.fusion=gated (before the sigmoid).
    """

    soft_tokens: nn.Parameter | None

    def __init__(self, plan: MemoryPlan, model: PreTrainedModel):
        super().__init__()
        self.plan = plan
        weight = cast(Tensor, model.get_input_embeddings().weight)
        soft = None
        if plan.soft is not None:
            shape = (plan.soft.num_soft_tokens, weight.shape[1])
            soft = nn.Parameter(weight.new_empty(shape).normal_(std=weight.std().item()))
        self.register_parameter("soft_tokens", soft)
        heads = cast(int, model.config.num_attention_heads)
        self.gates = nn.ParameterDict(
            {
                str(layer): nn.Parameter(weight.new_full((heads,), GATE_INIT))
                for layer, options in plan.layers.items()
                if options.fusion == "gated"
            }
        )


def attach(model: PreTrainedModel, memory: MemorySettings) -> PreTrainedModel:
    """Give `model` the memory of a configuration (`cfg.memory`), in place; returns the model.

    The model then reads through `unimem.read`. What memory adds to the weights lives under
    `model.memory`; `save_pretrained` still writes a plain model, `save_memory` the rest beside it.
    Attaching again replaces the memory.

    Raises ValueError for a decoder of another family than LLaMA, Mistral, Qwen2 and Qwen3, for
    layers that the model lacks, and for settings of the model that memory cannot honour.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type={config.model_type!r} is not supported; "
            f"choose one of {', '.join(FAMILIES)}"
        )
    if getattr(config, "attention_dropout", 0.0):
        raise ValueError(
            f"attention_dropout={config.attention_dropout} is not supported with memory; "
            "set it to 0"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding is not None and memory.segment_length > sliding:
        raise ValueError(
            f"memory.segment_length={memory.segment_length} is longer than the model's "
            f"sliding_window={sliding}; use segments of at most {sliding}"
        )
    plan = memory.plan(config.num_hidden_layers)
    attention.register()
    base = cast(Any, model.base_model)
    if not isinstance(base.rotary_emb, IdentityRotary):
        base.rotary_emb = IdentityRotary(base.rotary_emb)
    model.set_attn_implementation(attention.NAME)
    model.memory = AttachedMemory(plan, model)
    model._keys_to_ignore_on_save = [f"memory.{name}" for name in model.memory.state_dict()]
    return model


def attached(model: PreTrainedModel) -> AttachedMemory:
    """Give the memory of a model. Raises ValueError if none is attached."""
    memory = getattr(model, "memory", None)
    if not isinstance(memory, AttachedMemory):
        raise ValueError("the model has no memory: call unimem.attach(model, cfg.memory) first")
    return memory


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each layer in the backward pass instead of keeping its activations.

    Never reentrant: a reentrant recomputation loses the gradient that passes through memory.
    """
    # transformers renamed the method within version 5
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def save_memory(model: PreTrainedModel, folder: str | Path) -> None:
    """Write what memory adds to the weights beside the model that `save_pretrained` wrote."""
    state = {f"memory.{k}": v.contiguous() for k, v in attached(model).state_dict().items()}
    save_file(state, Path(folder) / WEIGHTS_NAME)


def load_memory(model: PreTrainedModel, folder: str | Path) -> None:
    """Read what `save_memory` wrote. Raises ValueError if it is of another memory."""
    state: Mapping[str, Tensor] = load_file(Path(folder) / WEIGHTS_NAME)
    memory = attached(model)
    given = {k.removeprefix("memory."): v for k, v in state.items()}
    shapes = {k: tuple(v.shape) for k, v in memory.state_dict().items()}
    if shapes != {k: tuple(v.shape) for k, v in given.items()}:
        raise ValueError(
            f"{Path(folder) / WEIGHTS_NAME} holds {sorted(given)}, "
            f"but the attached memory needs {shapes}; attach the memory that was saved"
        )
    with torch.no_grad():
        memory.load_state_dict(given)
