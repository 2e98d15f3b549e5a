"""memory.writing=events: tokens as they are, cut into events where the model is surprised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.rules import Chosen
from unimem.memory.tensors import at_least_float32
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory, Segment


@final
@option
class Events(LayerWriting):
    """Events by surprise (EM-LLM, Fountas 2024, arXiv 2407.09450), without refinement.

    A token begins a new event if its loss exceeds mean + `surprise_gamma` standard deviations of
    the losses of the up to `surprise_window` tokens before it (population deviation, of two losses
    at least). The first token of a document always does. Events are the blocks of
    memory.reading=block_similarity. Segments are read one at a time, since the losses of one
    must be known before the next.
    """

    every_token: ClassVar[bool] = True
    needs_surprise: ClassVar[bool] = True

    surprise_gamma: Annotated[float, Field(gt=0)]
    surprise_window: Annotated[int, Field(gt=1)]

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse to lose tokens whose losses are still needed, or their order."""
        if chosen.management.bounded or len(chosen.writings) > 1:
            yield (
                "memory.writing=events compares each token's loss with those before it, which must "
                "all be there: it needs memory.management=unbounded and no other writing"
            )

    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Leave the text as it is; until the losses are known it is one event."""
        text = segment.text
        surprise = at_least_float32(text.keys.new_full(text.places.shape, float("nan")))
        block = text.places[:, :, :1].expand_as(text.places)
        return memory.append(text.noted(surprise=surprise, block=block))

    def revise(self, memory: Memory, surprise: Tensor) -> Memory:
        """Cut the newest segment."""
        length, width = surprise.shape[1], self.surprise_window
        losses = memory.notes["surprise"][:, 0].clone()
        losses[:, -length:] = surprise
        losses = losses.masked_fill(~memory.valid, float("nan"))
        padded: Any = losses.new_full((len(losses), width + losses.shape[1]), float("nan"))
        padded[:, width:] = losses
        before = padded.unfold(1, width, 1)[:, :-1][:, -length:]  # [B, T, width]
        known = before == before
        count = known.sum(-1)
        some = count.clamp_min(1)
        mean = before.where(known, 0).sum(-1) / some
        spread = ((before - mean[..., None]).where(known, 0).square().sum(-1) / some).sqrt()
        begins = (count >= 2) & (surprise > mean + self.surprise_gamma * spread)
        positions = memory.positions[:, -length:]
        begins |= positions == 0
        block = memory.notes["block"].clone()
        own = positions.where(begins, -1)
        if len(memory) > length:
            own[:, 0] = own[:, 0].where(begins[:, 0], block[:, 0, -length - 1])
        block[:, 0, -length:] = own.cummax(1).values
        return memory.noted(block=block, surprise=losses[:, None])
