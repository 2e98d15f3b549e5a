"""Tiny random models and memory settings for the tests."""

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from unimem.memory.settings import MemorySettings

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
VOCAB = 61


def make_model(
    family: str = "llama", *, heads: int = 4, kv_heads: int = 2, layers: int = 3, seed=0
):
    """A random decoder whose attention is far from uniform, so that a wrong key shows."""
    make_config, make = FAMILIES[family]
    torch.manual_seed(seed)
    config = make_config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        max_position_embeddings=512,
        **({"sliding_window": None} if family != "llama" else {}),
    )
    model: PreTrainedModel = make(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                weight.mul_(12)
            elif weight.ndim == 2:
                weight.mul_(4)
    return model


def make_memory(segment_length: int = 8, **choices: Any) -> MemorySettings:
    """Settings with full-context memory unless `choices` say otherwise."""
    values: dict[str, Any] = {
        "segment_length": segment_length,
        "management": {"unbounded": {}},
        "writing": {"direct": {}},
        "reading": {"all": {}},
        "injection": {"all": {}},
    }
    values |= choices
    if values["reading"] != {"none": {}}:
        values = {"positions": "true"} | values
    return MemorySettings(**values)


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
