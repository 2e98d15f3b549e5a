"""Read documents once, segment by segment, and keep the loss of every token.

Shapes: B rows, S segments, T tokens of a segment, n tokens of a document.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from unimem.data.documents import Documents
from unimem.data.stream import NO_TARGET, SegmentBatch, SegmentStream
from unimem.memory.bank import MemoryBank
from unimem.model.layer import AttentionObserver, MemoryControl
from unimem.model.precision import computing
from unimem.model.segments import segment_nll


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The loss of every token, and what reading cost.

    nll: for each document the negative log-likelihood in nats of its tokens 1..n-1, float32
    `[n - 1]`; the first token has no prediction. documents: their indices; documents below two
    tokens are left out. seconds: wall time. state_bytes: the most that one row carried from one
    batch to the next.
    """

    nll: list[np.ndarray]
    documents: list[int]
    seconds: float
    state_bytes: int

    @property
    def tokens(self) -> int:
        """Tokens scored: those of the documents less one for each."""
        return sum(len(nll) for nll in self.nll)

    @property
    def tokens_per_second(self) -> float:
        """Tokens scored in a second."""
        return self.tokens / self.seconds


def score(
    model: PreTrainedModel,
    documents: Documents,
    *,
    segment_length: int,
    batch_size: int,
    use: MemoryControl = "own",
    segments_per_call: int = 1,
    observer: AttentionObserver | None = None,
    precision: str | None = None,
) -> Scores:
    """Read every document once, in order, from empty memory.

    `use` shows a document its own memory, none (`off`), or that of the document read beside it
    (`other`, which is empty while that one begins or once it has ended). Only `other` depends on
    `batch_size`. `observer` is told what is read of memory. `precision` is as `trainer.precision`,
    with the weights left as they are; None computes in their type. Leaves the model's mode and all
    random state as they were.

    Raises ValueError for `use="other"` with fewer than two rows, and `DataError` if no document
    has two tokens.
    """
    rows = min(batch_size, len(documents))
    if use == "other" and rows < 2:
        raise ValueError(
            f"another document's memory needs two documents side by side, got {rows}: "
            "set evaluation.batch_size and evaluation.documents to 2 or more"
        )
    stream = SegmentStream(
        documents,
        batch_size=rows,
        segment_length=segment_length,
        segments_per_step=segments_per_call,
        seed=0,
        steps=None,
        shuffle=False,
    )
    sizes = {i: documents.length(i) - 1 for i in range(len(documents))}
    nll = {i: np.empty(size, np.float32) for i, size in sizes.items() if size > 0}
    bank = MemoryBank.empty(rows, model.device)
    state_bytes = 0
    begin = time.perf_counter()
    with _evaluating(model), torch.no_grad(), computing(precision, model.device):
        for batch in stream:
            losses, bank = _read_batch(model, bank, batch, use, observer)
            state_bytes = max(state_bytes, bank.bytes_per_row())
            _file(losses, batch, nll)
    return Scores(
        nll=list(nll.values()),
        documents=list(nll),
        seconds=time.perf_counter() - begin,
        state_bytes=state_bytes,
    )


def _read_batch(
    model: PreTrainedModel,
    bank: MemoryBank,
    batch: SegmentBatch,
    use: MemoryControl,
    observer: AttentionObserver | None,
) -> tuple[np.ndarray, MemoryBank]:
    """Return the NLL [B, S, T] of every target, 0 where there is none, and the bank."""
    on_device = SegmentBatch(*(tensor.to(model.device) for tensor in batch))
    nll, bank, _ = segment_nll(
        model,
        bank,
        on_device.input_ids,
        on_device.targets,
        starts=on_device.starts,
        lengths=on_device.lengths,
        use=use,
        observer=observer,
    )
    return nll.cpu().numpy(), bank


def _file(losses: np.ndarray, batch: SegmentBatch, nll: dict[int, np.ndarray]) -> None:
    """Put the losses of a batch where they stand in their documents."""
    counts = (batch.targets != NO_TARGET).sum(-1)
    for b, s in (batch.documents >= 0).nonzero().tolist():
        count, offset = int(counts[b, s]), int(batch.offsets[b, s])
        nll[int(batch.documents[b, s])][offset : offset + count] = losses[b, s, :count]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and checkpointing off, then every module back to the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
