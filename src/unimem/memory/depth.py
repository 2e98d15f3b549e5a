"""A layer named by its depth, so that one setting fits models of any depth."""

from __future__ import annotations

import math
from typing import Annotated, Any, cast

from pydantic import PlainValidator

NAMES = ("upper_half", "lower_half")
"""Several layers at once: of N layers those from N/2 (rounded down) on, or those below."""

RULE = (
    "a layer is an index from 0, a negative index from the last layer (-1), or a fraction of the "
    "depth from 0.0 to 1.0"
)


def _checked_place(given: Any) -> Any:
    """Refuse what is no index and no fraction. Truth values are no indices."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, float) and 0 <= given <= 1:
        return given
    raise ValueError(RULE)


def _checked_places(given: Any) -> Any:
    listed = cast(list[Any], given if isinstance(given, list) else [given])
    if not listed:
        raise ValueError(f"give at least one layer; {RULE}")
    for place in listed:
        if not (isinstance(place, str) and place in NAMES):
            try:
                _checked_place(place)
            except ValueError as error:
                raise ValueError(f"{error}, or {' or '.join(NAMES)}") from None
    return listed


Place = Annotated[int | float, PlainValidator(_checked_place)]
"""One layer: an index, from the end if it is negative, or a fraction of the depth."""

Places = Annotated[list[int | float | str], PlainValidator(_checked_places)]
"""Several layers: a list of places and names, or one of them alone."""


def layer_at(place: int | float, num_layers: int) -> int:
    """Return the index of a layer; it may lie outside a model that is not as deep.

    A fraction f of N layers is layer floor(f N), and 1.0 the last: 0.5 is the first layer of the
    upper half.
    """
    if isinstance(place, float):
        # The margin keeps 0.29 of 100 layers at 29 in binary arithmetic.
        return min(math.floor(place * num_layers + 1e-9), num_layers - 1)
    return place if place >= 0 else num_layers + place


def layers_at(places: list[int | float | str], num_layers: int) -> tuple[int, ...]:
    """Return the indices of all layers named, each once and in order."""
    half = num_layers // 2
    found: set[int] = set()
    for place in places:
        match place:
            case "upper_half":
                found.update(range(half, num_layers))
            case "lower_half":
                found.update(range(max(1, half)))
            case str():
                raise ValueError(f"{place} names no layers")
            case _:
                found.add(layer_at(place, num_layers))
    return tuple(sorted(found))


def in_order(given: Any) -> Any:
    """Write layers as a list in one order, each once, so that equal choices are written alike.

    What names no layers stays as it is.
    """
    listed = cast(list[Any], given if isinstance(given, list) else [given])
    if not all(type(place) in (int, float, str) for place in listed):
        return cast(Any, given)
    indices = sorted({place for place in listed if type(place) is int and place >= 0})
    from_end = sorted({place for place in listed if type(place) is int and place < 0})
    fractions = sorted({place for place in listed if type(place) is float})
    return [*indices, *from_end, *fractions, *sorted({x for x in listed if type(x) is str})]
