"""Make the decoder of a configuration: a LLaMA with random weights, or a pretrained model."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from unimem.hub import ask_hub
from unimem.integrity import require_whole
from unimem.model.supported import lift_windows
from unimem.settings import ModelSettings, ScratchModel


def load_model(
    settings: ModelSettings, vocab_size: int, seed: int, dtype: str = "auto"
) -> PreTrainedModel:
    """Make or load the model, in training mode; `vocab_size` is the corpus's.

    A scratch model is float32 and a pure function of settings, `vocab_size` and `seed`. A
    pretrained one comes from a hub id or a local folder, in its own code never; its weights are
    cast to `dtype`, `auto` for as they are stored.

    Raises ValueError if the pretrained model cannot be had whole, or has fewer token embeddings
    than the corpus has tokens.
    """
    if isinstance(settings, ScratchModel):
        return _scratch(settings, vocab_size, seed).train()
    model = load_pretrained(
        settings.name,
        f"model.name={settings.name}",
        dtype=dtype,
        revision=settings.revision or "main",
    )
    if settings.sliding_window is None:
        lift_windows(model)
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if vocab_size > rows:
        raise ValueError(
            f"model.name={settings.name} has {rows} token embeddings but the corpus has "
            f"{vocab_size} tokens; set data.tokenizer to the model's own, {settings.tokenizer}"
        )
    return model.train()


def _scratch(settings: ScratchModel, vocab_size: int, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=settings.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        if not settings.tie_embeddings:
            # At the library's 0.02 what the layers add drowns the tokens, and small models stay on
            # the unigram plateau for thousands of steps; at 1 induction forms within hundreds.
            torch.nn.init.normal_(cast(Tensor, model.get_input_embeddings().weight))
        return model


def load_pretrained(
    name: str | Path, what: str, *, dtype: str = "auto", **options: Any
) -> PreTrainedModel:
    """Load a decoder from a folder or the hub, all of its weights and no other.

    Weights are read as safetensors alone, which cannot run code, and no code beside them is run.
    `what` names the model in errors; `options` go to transformers.

    Raises ValueError in a sentence for whatever keeps the model from being read.
    """
    if Path(name).is_dir():
        require_whole(Path(name).resolve())
    else:
        ask_hub()
    try:
        # a pair, which its signature does not say
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
        model, found = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    except Exception as error:  # of a damaged folder transformers raises errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{what} cannot be loaded: {reason}; {_remedy(name)}") from error
    for words, keys in (
        ("lack", found["missing_keys"]),
        ("hold also", found["unexpected_keys"]),
        ("hold in another shape", found["mismatched_keys"]),
    ):
        if keys:
            listed = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            raise ValueError(
                f"{what} is no whole {model.config.model_type} decoder: its weights {words} "
                f"{', '.join(listed[:3])}{more}; use a checkpoint whose weights fit its config.json"
            )
    model.config.use_cache = False
    return model


def _remedy(name: str | Path) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return "give a local folder, or the id of a hub model that is cached or can be downloaded"
    if [*folder.glob("*.bin")] and not [*folder.glob("*.safetensors")]:
        return (
            "its weights are pickled, which can run code, and are not read; save them again with "
            "save_pretrained of transformers, which writes safetensors"
        )
    return "its files are damaged or not those of a decoder; bring a whole copy"
