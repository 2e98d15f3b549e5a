"""Which settings of a study are meant: those whose overrides have the wanted values.

    {method: unimix}                            cells with the override method=unimix
    {injection_layer: "*", memory.size: 512}    any injection_layer, at this size

The same as text: `injection_layer=* memory.size=512`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

ANY = "*"


@dataclass(frozen=True)
class Select:
    """Overrides with the values they have to have; `*` is any."""

    wanted: Mapping[str, Any]

    @classmethod
    def read(cls, given: Any) -> "Select":
        """Read a mapping, or text. Raises ValueError for anything else, and for nothing."""
        if isinstance(given, str):
            pairs = [word.partition("=") for word in given.split()]
            given = {key: value for key, separator, value in pairs if separator}
            given = given if len(given) == len(pairs) else None
        if not isinstance(given, Mapping) or not given:
            raise ValueError('write the overrides meant, as in {method: unimix, memory.size: "*"}')
        return cls(dict(given))

    def matches(self, overrides: Mapping[str, str]) -> bool:
        """Whether settings with these overrides are meant."""
        return all(
            key in overrides and (value == ANY or _plain(overrides[key]) == _plain(value))
            for key, value in self.wanted.items()
        )

    def __str__(self) -> str:
        return in_words(self.wanted)


def in_words(overrides: Mapping[str, Any]) -> str:
    """Name settings by their overrides; a method's name, and a budget's, speak for themselves."""
    words: list[str] = []
    for key, value in overrides.items():
        name = key.removeprefix("memory.")
        text = str(value).strip("'\"")
        words.append(
            f"any {name}" if text == ANY else text if key == "method" else f"{name}={text}"
        )
    return " ".join(words)


def number(text: str | None) -> float | None:
    """Read a value of an override as a number; None for anything else."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    """Read text as the value that it stands for: overrides are text, statements are YAML."""
    if not isinstance(value, str):
        return value
    try:
        found = yaml.safe_load(value) if number(value) is None else number(value)
    except yaml.YAMLError:
        return value
    # Quotes may hold a value that would be another without them; what is meant is the value.
    return found if found == value else _plain(found)
