"""Put the four dimensions of memory into a Hugging Face decoder: no fork, same weight names."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from unimem.attention.rotary import IdentityRotary
from unimem.integrity import require_whole
from unimem.memory.plan import MemoryPlan
from unimem.memory.settings import MemorySettings
from unimem.model import layer as attention
from unimem.model.supported import (
    head_size,
    require_supported,
    sliding_windows,
    window_remark,
)
from unimem.settings import Backend

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "memory.safetensors"
GATE_INIT = -2.0
"""Before its sigmoid: a gate starts at 0.12, so that a pretrained model starts nearly as it was."""


class AttachedMemory(nn.Module):
    """What memory adds to a model, under the name `memory`: its plan and its few weights.

    They are those of `MemoryPlan.weight_shapes`, by the same names. `windows` gives the sliding
    window of each of the model's layers that has one.
    """

    soft_tokens: nn.Parameter | None
    inserted_tokens: nn.Parameter | None

    def __init__(self, plan: MemoryPlan, model: PreTrainedModel, backend: str):
        super().__init__()
        self.plan, self.backend = plan, backend
        self.windows = sliding_windows(model)
        embeddings = cast(Tensor, model.get_input_embeddings().weight)
        heads = cast(int, model.config.num_attention_heads)
        shapes = plan.weight_shapes(
            width=embeddings.shape[1],
            heads=heads,
            kv_heads=getattr(model.config, "num_key_value_heads", heads),
            head_size=head_size(model),
        )
        made = {name: nn.Parameter(embeddings.new_zeros(shape)) for name, shape in shapes.items()}
        std, own = embeddings.std().item(), dict[str, dict[str, nn.Parameter]]()
        gates = dict[str, nn.Parameter]()
        with torch.no_grad():
            for name, weight in made.items():
                match name.split("."):
                    case ["layers", layer, key]:
                        own.setdefault(layer, {})[key] = weight
                    case ["gates", layer]:
                        gates[layer] = cast(nn.Parameter, weight.fill_(GATE_INIT))
                    case _:
                        weight.normal_(std=std)
            for layer, weights in own.items():
                for option in plan.layers[int(layer)].options:
                    names = option.weight_shapes(1, 1)
                    option.initialise({name: weights[name] for name in names})
        self.register_parameter("soft_tokens", made.get("soft_tokens"))
        self.register_parameter("inserted_tokens", made.get("inserted_tokens"))
        self.gates = nn.ParameterDict(gates)
        self.layers = nn.ModuleDict({layer: nn.ParameterDict(w) for layer, w in own.items()})


def attach(
    model: PreTrainedModel, memory: MemorySettings, backend: Backend = "auto"
) -> PreTrainedModel:
    """Attach the memory of a configuration to `model` (`cfg.memory`), in place; returns the model.

    The model then reads through `unimem.read`. What memory adds to the weights lives under
    `model.memory`; `save_pretrained` still writes a plain model, `save_memory` the rest beside it.
    Attaching again replaces the memory. `backend` computes attention with memory
    (`attention.backend`); whether it can is known when the model first reads. A sliding window of
    a layer holds within segments and for its memory; a warning says so.

    Raises ValueError for a decoder of another family than LLaMA, Mistral, Qwen2 and Qwen3, for
    layers that the model lacks, and for settings of the model that memory cannot honour; TypeError
    for what is no transformers model or no `cfg.memory`.
    """
    _require_model(model)
    _require_memory(memory)
    if backend not in get_args(Backend):
        raise ValueError(
            f"attention.backend={backend!r} is none; choose one of {', '.join(get_args(Backend))}"
        )
    require_supported(model)
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} predicts no tokens; load the model as AutoModelForCausalLM"
        )
    plan = memory.plan(model.config.num_hidden_layers)
    if remark := window_remark(plan, sliding_windows(model)):
        logger.warning(remark)
    attention.register()
    base = cast(Any, model.base_model)
    if not isinstance(base.rotary_emb, IdentityRotary):
        base.rotary_emb = IdentityRotary(base.rotary_emb)
    model.set_attn_implementation(attention.NAME)
    model.memory = AttachedMemory(plan, model, backend)
    model._keys_to_ignore_on_save = [f"memory.{name}" for name in model.memory.state_dict()]
    return model


def attached(model: PreTrainedModel) -> AttachedMemory:
    """Return a model's memory. Raises ValueError if none is attached, TypeError for no model."""
    _require_model(model)
    memory = getattr(model, "memory", None)
    if not isinstance(memory, AttachedMemory):
        raise ValueError("the model has no memory: call unimem.attach(model, cfg.memory) first")
    return memory


def _require_model(model: Any) -> None:
    """Raise TypeError for what is no transformers model, and name the one inside a wrapper."""
    if isinstance(model, PreTrainedModel):
        return
    inside = (("get_base_model", "get_base_model()"), ("_orig_mod", "_orig_mod"))
    found = [path for name, path in (*inside, ("module", "module")) if hasattr(model, name)]
    hint = f"; give the model inside: model.{found[0]}" if found else ""
    raise TypeError(
        f"memory belongs to a transformers model (PreTrainedModel), got {type(model).__name__}"
        f"{hint}"
    )


def _require_memory(memory: Any) -> None:
    """Raise TypeError for what are no settings of memory."""
    if isinstance(memory, MemorySettings):
        return
    if isinstance(getattr(memory, "memory", None), MemorySettings):
        hint = "give its memory: attach(model, cfg.memory)"
    else:
        hint = 'give unimem.compose("method=...").memory'
    raise TypeError(
        f"memory must be the memory of a configuration, got {type(memory).__name__}; {hint}"
    )


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


def read_memory(folder: str | Path) -> Mapping[str, Tensor]:
    """Return what `save_memory` wrote. Raises ValueError if the file is missing or damaged."""
    path = Path(folder) / WEIGHTS_NAME
    require_whole(path.resolve())
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}; bring a whole copy") from error


def load_memory(model: PreTrainedModel, folder: str | Path) -> None:
    """Read what `save_memory` wrote. Raises ValueError if it is of another memory."""
    state = read_memory(folder)
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
