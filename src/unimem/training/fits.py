"""Whether a run can fit into the memory of its device, checked before it starts.

Counted is the minimum that a step needs with any attention kernel. A run that is refused could not
have run; a run that is accepted may still run out of memory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from unimem.config import Config
from unimem.model.attach import attached
from unimem.training.footprint import state_bytes_per_row
from unimem.words import counted

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux gives the memory limit of a container."""

HINT = ", or set trainer.gradient_checkpointing=true"


@dataclass(frozen=True, kw_only=True)
class Need:
    """The least bytes that a step needs, by part."""

    tokens: int
    """Tokens of a segment; fewer than segment_length if all documents are shorter."""
    weights: int
    """Weights and, in training, their gradients and AdamW's two moments."""
    attention: int
    """Masks of a segment, and its logits where attention is computed by the reference."""
    activations: int
    """Activations kept for the backward pass; without it, of one layer."""
    logits: int
    """Logits over the vocabulary."""
    state: int
    """The memory of all rows."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.weights + self.attention + self.activations + self.logits + self.state


def need(
    model: PreTrainedModel,
    *,
    longest: int,
    rows: int,
    segments: int,
    dtype: torch.dtype,
    device: torch.device,
    trains: bool,
    checkpointing: bool = False,
) -> Need:
    """Return what a step of `rows` rows with `segments` segments each needs.

    `longest` is the number of tokens of the longest document, `dtype` the type of activations.
    """
    plan, config = attached(model).plan, model.config
    size, width, inner = dtype.itemsize, config.hidden_size, config.intermediate_size
    length = min(plan.segment_length, longest)
    tokens = rows * segments * length
    layers = config.num_hidden_layers
    # Input, both norms, queries, attention output, residual sum; gate, up, activation, product.
    each = (6 * width + 4 * inner) * size
    if not trains:
        kept = each * rows * length
    elif checkpointing:
        kept = (layers * width * size + each) * tokens
    else:
        kept = layers * each * tokens
    # The mask is made of a square of ones.
    square = 2 * length * length
    by_reference = [
        length + layer.most_slots(max(longest - length, 0), plan.segment_length)
        for layer in plan.layers.values()
        if layer.needs_reference is not None
    ]
    weighed = max(by_reference, default=0)
    if trains:
        weighed = segments * (weighed if checkpointing else sum(by_reference))
    masked = len(plan.layers) - len(by_reference) if longest > length else 0
    if device.type == "cpu" and masked:
        # A CPU's kernel takes a segment that reads memory with a bias, kept for the backward pass.
        square += size * length * length * (masked if trains and not checkpointing else 1)
    # Logits and weights, in float32.
    square += 2 * 4 * rows * config.num_attention_heads * length * weighed
    # Logits, and their float32 copy in cross entropy; of one segment if nothing is trained.
    predicted = tokens if trains else rows * length
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return Need(
        tokens=length,
        weights=weights * (4 if trains else 1),
        attention=square,
        activations=kept,
        logits=predicted * config.vocab_size * (size + 4),
        state=rows * state_bytes_per_row(model, longest, dtype),
    )


def memory_of(device: torch.device) -> int:
    """Return the bytes of a device: of the GPU, or what this machine or container may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in LIMITS:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        found += [int(text)] if text.isdigit() else []
    return min(found)


def require_fit(
    config: Config,
    model: PreTrainedModel,
    *,
    trained: Sequence[int],
    held_out: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    processes: int = 1,
    there: int | None = None,
) -> None:
    """Refuse a run whose steps cannot fit into the memory of its device.

    `trained` and `held_out` are the lengths of the documents to train on and to evaluate (empty: no
    training, no evaluation); `processes` run on this machine. `there` is the memory of the device
    in bytes, by default `memory_of`.

    Raises ValueError with the settings, the bytes that are needed and the bytes that there are.
    """
    there = memory_of(device) if there is None else there
    if device.type == "cpu":
        there //= processes
    trainer, evaluation = config.trainer, config.evaluation
    if trained:
        rows, segments = trainer.batch_size, config.segments_per_step()
        found = need(
            model,
            longest=max(trained),
            rows=rows,
            segments=segments,
            dtype=dtype,
            device=device,
            trains=True,
            checkpointing=trainer.gradient_checkpointing,
        )
        shards = processes * trainer.num_nodes if trainer.strategy == "fsdp" else 1
        total = found.total - found.weights + found.weights // shards
        if total > there:
            raise ValueError(
                _refusal("a training step", found, total, there, device, config)
                + f"trainer.batch_size={rows} rows of {counted(segments, 'segment')} each "
                "(trainer.segments_per_step, or memory.bptt_segments + 1); lower one of these"
                + ("" if trainer.gradient_checkpointing else HINT)
            )
    if held_out:
        rows = min(evaluation.batch_size, len(held_out))
        found = need(
            model,
            longest=max(held_out),
            rows=rows,
            segments=1,
            dtype=dtype,
            device=device,
            trains=False,
        )
        if found.total > there:
            raise ValueError(
                _refusal("evaluation", found, found.total, there, device, config)
                + f"evaluation.batch_size={evaluation.batch_size} rows; lower one of these, or "
                "evaluation.max_tokens"
            )


def _refusal(
    what: str, found: Need, total: int, there: int, device: torch.device, config: Config
) -> str:
    """Return the beginning of the error: what does not fit, and its largest parts."""
    parts = {
        "weights": found.weights,
        "attention within a segment": found.attention,
        "activations": found.activations,
        "logits": found.logits,
        "memory": found.state,
    }
    largest = sorted(parts, key=lambda name: -parts[name])[:2]
    shown = ", ".join(f"{_gigabytes(parts[name])} for {name}" for name in largest)
    where = "the GPU" if device.type == "cuda" else "this machine, for each process,"
    return (
        f"{what} needs {_gigabytes(total)} at the least ({shown}), and {where} has "
        f"{_gigabytes(there)}: memory.segment_length={config.memory.segment_length} makes segments "
        f"of {found.tokens:,} tokens of these documents, with "
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
