"""Make the decoder of a configuration: a LLaMA with random weights, or a pretrained model."""

from typing import cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from unimem.model.supported import lift_windows
from unimem.settings import ModelSettings, PretrainedModel, ScratchModel


def load_model(settings: ModelSettings, vocab_size: int, seed: int) -> PreTrainedModel:
    """Make or load the model, in training mode; `vocab_size` is the corpus's.

    A scratch model is float32 and a pure function of settings, `vocab_size` and `seed`. A
    pretrained one comes from a hub id or a local folder, in its own code never.

    Raises ValueError if the pretrained model cannot be had, or has fewer token embeddings than the
    corpus has tokens.
    """
    if isinstance(settings, ScratchModel):
        return _scratch(settings, vocab_size, seed).train()
    model = _pretrained(settings)
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


def _pretrained(settings: PretrainedModel) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            settings.name,
            revision=settings.revision or "main",
            dtype=settings.dtype,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.name={settings.name} cannot be loaded: {' '.join(str(error).split())[:200]}; "
            "give a local folder, or the id of a hub model that is cached or can be downloaded"
        ) from error
    model.config.use_cache = False
    return model if settings.sliding_window == "keep" else lift_windows(model)
