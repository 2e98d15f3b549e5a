"""Keys and queries of a trained model."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unimem.bench.inputs import Recorded
from unimem.config import check
from unimem.data.build import build_corpus
from unimem.data.documents import Documents
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach, attached, load_memory
from unimem.model.load import load_pretrained
from unimem.model.segments import run
from unimem.model.supported import head_size
from unimem.runs.folder import weights_folder
from unimem.runs.records import read_result
from unimem.training.vocabulary import require_vocabulary, with_tokenizer_of

TOKENS = 8192
"""Of held-out text that are read, if there is so much."""


def recorded_keys(folder: Path) -> Recorded:
    """Read held-out documents with a finished run's model, and keep a middle layer's keys.

    Raises ValueError if the run has not come to its end, or its documents are all shorter than a
    segment.
    """
    recorded = read_result(folder)
    config = check(recorded["config"])
    weights = weights_folder(folder, recorded["config"])
    model = load_pretrained(weights, str(weights), dtype="float32", local_files_only=True)
    corpus = build_corpus(with_tokenizer_of(weights, config.data))
    require_vocabulary(str(weights), corpus, config.data)
    attach(model, config.memory)
    load_memory(model, weights)
    taps: dict[str, list[Tensor]] = {"k": [], "q": []}
    attention = cast(Any, model.base_model).layers[model.config.num_hidden_layers // 2].self_attn
    handles = [_tap(attention, name, head_size(model), into) for name, into in taps.items()]
    _read(model.eval(), corpus.validation)
    for handle in handles:
        handle.remove()
    if not taps["k"]:
        raise ValueError(f"keys={folder}: its held-out documents are shorter than a segment")
    keys, queries = (torch.cat(taps[name]).transpose(0, 1) for name in ("k", "q"))
    return Recorded(keys, queries)


@torch.no_grad()
def _read(model: PreTrainedModel, documents: Documents) -> None:
    """Read whole segments of documents, from the first on, until there are tokens enough."""
    length, tokens = attached(model).plan.segment_length, 0
    for i in range(len(documents)):
        segments = min(documents.length(i), TOKENS - tokens) // length
        if not segments:
            continue
        ids = torch.from_numpy(documents.ids(i)[: segments * length]).view(1, segments, length)
        starts = torch.zeros(1, segments, dtype=torch.bool)
        lengths = torch.full((1, segments), length)
        run(model, MemoryBank.empty(1), ids, starts=starts, lengths=lengths, segments_per_call=1)
        tokens += segments * length


def _tap(attention: nn.Module, which: str, size: int, into: list[Tensor]) -> Any:
    """Keep what a layer computes of its `k` or `q` [N, heads, D], before rotary embedding."""
    parts = dict(attention.named_children())
    last = parts.get(f"{which}_norm", parts[f"{which}_proj"])  # Qwen3 normalises each head

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
        into.append(out[0].reshape(out.shape[1], -1, size))

    return last.register_forward_hook(keep)
