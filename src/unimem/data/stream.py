"""Documents to batches of segments: every row of a batch follows a document of its own.

Shapes: B rows, S segments of one row in one batch, T tokens of the longest of them. Padding that no
row needs is not there to be computed.
"""

import heapq
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from unimem.data.documents import DataError, Documents

logger = logging.getLogger(__name__)

NO_TARGET = -100
"""Target of a position that has none; what `torch.nn.functional.cross_entropy` ignores."""


class SegmentBatch(NamedTuple):
    """S consecutive segments of B rows.

    Attributes:
        input_ids: token ids, 0 where padded, `[B, S, T]`.
        targets: the document's next token, across segment borders; NO_TARGET at its last token and
            in padding, `[B, S, T]`.
        starts: whether the segment begins a document, `[B, S]` bool.
        lengths: tokens of the segment that are not padding; 0 for a row without document, `[B, S]`.
        documents: index of the document; -1 for none, `[B, S]`.
        offsets: position of the segment's first token in its document, `[B, S]`.
    """

    input_ids: Tensor
    targets: Tensor
    starts: Tensor
    lengths: Tensor
    documents: Tensor
    offsets: Tensor


@final
class SegmentStream:
    """Batches of segments, in an order that only `seed` and the epoch decide.

    A row whose document has ended takes the epoch's next document at the next segment border. There
    are `batch_size * world_size` rows in all; rank r reads rows r * batch_size and following. The
    same number of rows gives the same order, however many ranks share them.

    `iter` starts at the beginning of an epoch, each time the next; after `load_state_dict` it goes
    on where the state was taken.

    Args:
        documents: what to read. Those below two tokens hold nothing to predict: they are left out,
            with a warning.
        batch_size: rows of this rank.
        segment_length: tokens in a segment (T).
        segments_per_step: segments of a row in a batch; fewer only when all rows have come to their
            end.
        seed: of the order.
        steps: batches; epochs follow each other without a gap. None: one epoch, until every row is
            done.
        shuffle: permute the documents in every epoch; else they are read in their order.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        DataError: no document has two tokens.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        batch_size: int,
        segment_length: int,
        segments_per_step: int,
        seed: int,
        steps: int | None,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        assert min(batch_size, segment_length, segments_per_step) > 0 <= rank < world_size
        self._documents = documents
        self._lengths = np.array([documents.length(i) for i in range(len(documents))])
        self._usable = np.flatnonzero(self._lengths >= 2)
        if not len(self._usable):
            raise DataError(f"none of the {len(documents)} documents has two tokens or more")
        if short := len(documents) - len(self._usable):
            names = [documents.name(int(i)) for i in np.flatnonzero(self._lengths < 2)[:3]]
            logger.warning("%d documents of less than two tokens left out: %s", short, names)
        self._segment_length = segment_length
        self._segments_per_step = segments_per_step
        self._seed = seed
        self._steps = steps
        self._shuffle = shuffle
        self._own = range(rank * batch_size, (rank + 1) * batch_size)
        self._num_rows = world_size * batch_size
        self._resumed = False
        self._begin(epoch=0)

    def __len__(self) -> int:
        """Return `steps`, or the number of batches of the epoch that was begun last."""
        if self._steps is not None:
            return self._steps
        free_at = [0] * self._num_rows
        for i in self._order(self._epoch):
            segments = -(-int(self._lengths[i]) // self._segment_length)
            heapq.heapreplace(free_at, free_at[0] + segments)
        return -(-max(free_at) // self._segments_per_step)

    def __iter__(self) -> Iterator[SegmentBatch]:
        if self._resumed:
            self._resumed = False
        elif self._step:
            self._begin(self._epoch + 1)
        tokens: dict[int, np.ndarray] = {}
        while not self._is_done():
            batch = self._next_batch(tokens)
            self._step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded: ints and lists."""
        return {
            "seed": self._seed,
            "shuffle": self._shuffle,
            "segment_length": self._segment_length,
            "segments_per_step": self._segments_per_step,
            "num_tokens": int(self._lengths.sum()),
            "epoch": self._epoch,
            "taken": self._taken,
            "step": self._step,
            "row_documents": list(self._row_documents),
            "row_offsets": list(self._row_offsets),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, at the next `iter`; the number of ranks may differ.

        Raises:
            ValueError: the state is of another stream.
        """
        own = self.state_dict()
        for name in ("seed", "shuffle", "segment_length", "segments_per_step", "num_tokens"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the saved position has {name}={state[name]} but this run {own[name]}: "
                    "continue with the data and settings that the run was started with"
                )
        if len(state["row_documents"]) != self._num_rows:
            raise ValueError(
                f"the saved position has {len(state['row_documents'])} rows but this run "
                f"{self._num_rows}: keep batch size times number of processes"
            )
        self._begin(state["epoch"])
        self._taken = state["taken"]
        self._step = state["step"]
        self._row_documents = list(state["row_documents"])
        self._row_offsets = list(state["row_offsets"])
        self._resumed = True

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._permutation = self._order(epoch)
        self._taken = 0
        self._step = 0
        self._row_documents = [-1] * self._num_rows
        self._row_offsets = [0] * self._num_rows

    def _order(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return self._usable.tolist()
        return np.random.default_rng([self._seed, epoch]).permutation(self._usable).tolist()

    def _is_done(self) -> bool:
        if self._steps is not None:
            return self._step >= self._steps
        return self._taken == len(self._permutation) and max(self._row_documents) < 0

    def _next_document(self) -> int:
        """Take the next document; -1 when the only epoch is over."""
        if self._taken == len(self._permutation):
            if self._steps is None:
                return -1
            self._epoch += 1
            self._permutation = self._order(self._epoch)
            self._taken = 0
        self._taken += 1
        return self._permutation[self._taken - 1]

    def _next_batch(self, tokens: dict[int, np.ndarray]) -> SegmentBatch:
        """Read one batch and move every row on; `tokens` keeps the rows' documents in between."""
        B, S = len(self._own), self._segments_per_step
        T = min(self._segment_length, int(self._lengths.max()))
        batch = SegmentBatch(
            input_ids=torch.zeros(B, S, T, dtype=torch.long),
            targets=torch.full((B, S, T), NO_TARGET),
            starts=torch.ones(B, S, dtype=torch.bool),
            lengths=torch.zeros(B, S, dtype=torch.long),
            documents=torch.full((B, S), -1),
            offsets=torch.zeros(B, S, dtype=torch.long),
        )
        # of all ranks: their steps have the same shape
        segments = longest = 0
        for s in range(S):
            for row in range(self._num_rows):
                if self._row_documents[row] < 0:
                    self._row_documents[row] = self._next_document()
                    tokens.pop(row, None)
                document, offset = self._row_documents[row], self._row_offsets[row]
                if document < 0:
                    continue
                left = int(self._lengths[document]) - offset
                segments, longest = s + 1, max(longest, min(left, T))
                if row in self._own:
                    if row not in tokens:
                        tokens[row] = self._documents.ids(document)
                    _put(batch, row - self._own.start, s, document, offset, tokens[row])
                if left > T:
                    self._row_offsets[row] += T
                else:
                    self._row_documents[row], self._row_offsets[row] = -1, 0
        ids, targets, *others = batch
        text = (tensor[:, :segments, :longest].contiguous() for tensor in (ids, targets))
        return SegmentBatch(*text, *(tensor[:, :segments].contiguous() for tensor in others))


def _put(batch: SegmentBatch, b: int, s: int, document: int, offset: int, ids: np.ndarray) -> None:
    """Write the segment of `ids` that begins at `offset` into row b, segment s."""
    T = batch.input_ids.shape[-1]
    segment, following = ids[offset : offset + T], ids[offset + 1 : offset + T + 1]
    batch.input_ids[b, s, : len(segment)] = torch.from_numpy(segment)
    batch.targets[b, s, : len(following)] = torch.from_numpy(following)
    batch.starts[b, s] = offset == 0
    batch.lengths[b, s] = len(segment)
    batch.documents[b, s] = document
    batch.offsets[b, s] = offset
