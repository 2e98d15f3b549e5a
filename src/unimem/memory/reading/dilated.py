"""memory.reading=dilated: several grids of tokens, each wider and sparser than the one before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import PlaceReading
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from torch import Tensor

Counts = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]


@final
@option
class Dilated(PlaceReading):
    """Dilated attention (LongNet, Ding 2023, arXiv 2307.02486).

    Grid g links two tokens of the same aligned stretch of `dilated_spans`[g] tokens if both places,
    counted from the start of the stretch, leave the remainder `head` when divided by
    `dilated_rates`[g] (as in the paper; the released code gives neighbouring heads one remainder).
    LongNet weighs the outputs of its grids by their log-sum-exp, so that a token in two grids
    counts twice: here it does so in the one softmax, gradient included, where the released code
    takes the weights for constants.
    """

    list_fields: ClassVar[frozenset[str]] = frozenset({"dilated_spans", "dilated_rates"})

    dilated_spans: Counts
    dilated_rates: Counts

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse grids that do not pair up, or that leave a token without itself."""
        if len(self.dilated_spans) != len(self.dilated_rates):
            yield (
                f"memory.dilated_spans={self.dilated_spans} and memory.dilated_rates="
                f"{self.dilated_rates} differ in length; give one rate for each span"
            )
        if self.dilated_rates[0] != 1:
            yield (
                f"memory.dilated_rates={self.dilated_rates} must begin with 1: with no full grid "
                "most tokens would see nothing"
            )

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Count the grids that link two tokens."""
        head = queries.new_ones(heads).cumsum(0).sub(1)[None, :, None, None]
        multiplicity = (queries < 0) & (keys < 0) & (head < 0)
        multiplicity = multiplicity.float()
        for span, rate in zip(self.dilated_spans, self.dilated_rates, strict=True):
            same = queries // span == keys // span
            for places in (queries, keys):
                same = same & (places % span % rate == head % rate)
            multiplicity += same
        return multiplicity
