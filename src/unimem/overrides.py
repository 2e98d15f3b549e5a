"""Overrides in Hydra's grammar, `name=value`: written, parsed, explained when they are wrong."""

import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from unimem.words import printable


class OverrideError(ValueError):
    """An override that cannot be parsed; the message says how to write it."""


MOST_CHARACTERS = 10_000
MOST_VALUES = 1_000
MOST_NESTED = 20
MOST_DIGITS = 300
"""What one argument holds at most. Hydra's parser takes minutes for more, or does not return."""


class Overrides(Mapping[str, Override]):
    """Parsed overrides, each under its name, in order; of two of one name the later one counts."""

    def __init__(self, parsed: Iterable[Override] = ()):
        self._parsed = {override.key_or_group: override for override in parsed}

    def __getitem__(self, name: str) -> Override:
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed)

    def __len__(self) -> int:
        return len(self._parsed)

    def __or__(self, others: "Overrides") -> "Overrides":
        return Overrides([*self.values(), *others.values()])

    @property
    def lines(self) -> tuple[str, ...]:
        """The overrides as they are written."""
        return tuple(map(text_of, self.values()))

    def under(self, names: Collection[str]) -> "Overrides":
        """Return the overrides of these settings, and of those below them."""
        return Overrides(o for key, o in self.items() if is_under(key, names))

    def without(self, names: Collection[str]) -> "Overrides":
        """Return the overrides of other settings than these and those below them."""
        return Overrides(o for key, o in self.items() if not is_under(key, names))


def text_of(override: Override) -> str:
    """Return an override as it is written."""
    return override.input_line or ""


def is_under(key: str, names: Collection[str]) -> bool:
    """Whether a setting is one of these, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def quoted(text: str) -> str:
    """Write text in quotes, so that Hydra's grammar takes it as it is; `${` still interpolates."""
    return QuotedString(text, Quote.double).with_quotes()


def literal(value: Any) -> str:
    """Write a plain value in Hydra's grammar, so that it is read back as the same value.

    An interpolation in it is text too: records and study files of others are written so, and could
    have variables of the environment put in otherwise.
    """
    if isinstance(value, str):
        word = re.fullmatch(r"[A-Za-z_/][\w./+-]*", value, re.ASCII)
        plain = word and value.lower() not in ("true", "false", "null", "nan", "inf")
        return value if plain else quoted(_escaped(value))
    if isinstance(value, list | tuple):
        entries = (
            quoted(_escaped(entry)) if isinstance(entry, str) else literal(entry) for entry in value
        )
        return f"[{', '.join(entries)}]"
    return json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Have OmegaConf take `${` for what it is: behind an odd number of backslashes."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)


def parse_lines(lines: Sequence[str], text: Collection[str] = ()) -> list[Override]:
    """Parse overrides. The settings named in `text` take their value as it is written.

    Raises `OverrideError` for the first that cannot be parsed.
    """
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for line in as_written(lines, text):
        if problem := _refusal(line):
            raise OverrideError(problem)
        try:
            parsed += parser.parse_overrides([line])
        except (HydraException, RecursionError, ValueError):
            raise OverrideError(_how_to_write(line)) from None
    return parsed


def shown(text: str, most: int = 200) -> str:
    """Write text so that a message can hold it: cut, and without characters that are not seen."""
    cut = text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
    return printable(cut)


def secret(line: str) -> str | None:
    """Return the name of a key, token or password that an argument holds; None if it holds none."""
    found = _SECRET.search(line)
    return found and found["name"]


_SECRET = re.compile(
    r"""(?:^|[\s{,])[+~'"]*(?P<name>[\w.@/-]*?(?<![a-z])"""
    r"""(?:(?:api|access)?key|token|secrets?|passw(?:or)?d|credentials?))"""
    r"""['"]?\s*[=:]""",
    re.IGNORECASE,
)


def _refusal(line: str) -> str | None:
    """Return why an argument is not even parsed; None if it can be."""
    if name := secret(line):
        return (
            f"{name}: a key, token or password is not a setting, and its value is not kept; give "
            "it to its library: wandb login, hf auth login, or WANDB_API_KEY and HF_TOKEN in the "
            "environment"
        )
    what = ""
    if len(line) > MOST_CHARACTERS:
        what = f"{len(line):,} characters, at most {MOST_CHARACTERS:,} are taken"
    elif line.count(",") >= MOST_VALUES:
        what = f"{line.count(',') + 1:,} values, at most {MOST_VALUES:,} are taken"
    elif (depth := _depth(line)) > MOST_NESTED:
        what = f"brackets {depth:,} deep, at most {MOST_NESTED} are taken"
    elif (digits := max(map(len, re.findall(r"[\d_]+", line)), default=0)) > MOST_DIGITS:
        what = f"a number of {digits:,} digits, at most {MOST_DIGITS} are taken"
    elif re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", line):
        what = "a control character, or bytes that are not UTF-8"
    return what and f"{shown(line)}: the argument has {what}"


def _depth(line: str) -> int:
    """Return how many brackets are open at most."""
    depth = most = 0
    for character in line:
        depth = depth + 1 if character in "([{" else depth - (character in ")]}")
        most = max(most, depth)
    return most


def as_written(lines: Sequence[str], text: Collection[str]) -> list[str]:
    """Quote what Hydra would read as a number or truth value where a setting is text.

    `name=1e3` becomes `name="1e3"`, if `text` has `name`. Other lines stay as they are.
    """
    return [_as_text(line) if _name(line) in text else line for line in lines]


def _as_text(line: str) -> str:
    if _refusal(line):
        return line  # it is told when the overrides are parsed
    try:
        override = OverridesParser.create().parse_override(line)
    except (HydraException, RecursionError, ValueError):
        return line
    if override.is_sweep_override() or not isinstance(override.value(), bool | int | float):
        return line
    key, _, value = line.partition("=")
    return f"{key}={quoted(value.strip())}"


def _name(line: str) -> str:
    return line.partition("=")[0].strip().lstrip("+~")


def _how_to_write(line: str) -> str:
    """Return how to write an override that Hydra's grammar refuses."""
    key, separator, value = (part.strip() for part in line.partition("="))
    if not separator or not re.fullmatch(r"[+~]*[\w./@:-]+", key, re.ASCII):
        return f"'{shown(line)}' is not a setting; write name=value, without spaces around the ="
    if re.search(r"\s[\w.+~@/]+=", value):
        return (
            f"'{shown(line)}' is one argument; write name=value for each setting, in quotes of "
            "its own"
        )
    if value.startswith("[") and value.endswith("]"):
        entries = [entry.strip().strip("'\"") for entry in value[1:-1].split(",")]
        proper = f"[{','.join(_entry(entry) for entry in entries)}]"
    else:
        proper = quoted(value.strip("'\""))
    if len(line) > 1000:
        return f"{shown(line)}: the value has characters that need quotes"
    return (
        f"{line}: the value has characters that need quotes; write name=value as "
        f"{shlex.quote(f'{key}={proper}')}, the outer quotes for the shell"
    )


def _entry(text: str) -> str:
    word = re.fullmatch(r"[\w./+-]+", text, re.ASCII)
    return text if word else quoted(text)
