"""Overrides in Hydra's grammar, `name=value`: written, parsed, explained when they are wrong."""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException


class OverrideError(ValueError):
    """An override that cannot be parsed; the message says how to write it."""


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
        try:
            parsed += parser.parse_overrides([line])
        except (HydraException, RecursionError):
            raise OverrideError(_how_to_write(line)) from None
    return parsed


def as_written(lines: Sequence[str], text: Collection[str]) -> list[str]:
    """Quote what Hydra would read as a number or truth value where a setting is text.

    `name=1e3` becomes `name="1e3"`, if `text` has `name`. Other lines stay as they are.
    """
    return [_as_text(line) if _name(line) in text else line for line in lines]


def _as_text(line: str) -> str:
    try:
        override = OverridesParser.create().parse_override(line)
    except (HydraException, RecursionError):
        return line
    if override.is_sweep_override() or not isinstance(override.value(), bool | int | float):
        return line
    key, _, value = line.partition("=")
    return f"{key}={quoted(value.strip())}"


def _name(line: str) -> str:
    return line.partition("=")[0].strip().lstrip("+~")


def _how_to_write(line: str) -> str:
    """Say how to write an override that Hydra's grammar refuses."""
    key, separator, value = (part.strip() for part in line.partition("="))
    if not separator or not re.fullmatch(r"[+~]*[\w./@:-]+", key, re.ASCII):
        return f"{line!r} is not a setting; write name=value, without spaces around the ="
    if re.search(r"\s[\w.+~@/]+=", value):
        return f"{line!r} is one argument; write name=value for each setting, in quotes of its own"
    if value.startswith("[") and value.endswith("]"):
        entries = [entry.strip().strip("'\"") for entry in value[1:-1].split(",")]
        proper = f"[{','.join(_entry(entry) for entry in entries)}]"
    else:
        proper = quoted(value.strip("'\""))
    return (
        f"{line}: the value has characters that need quotes; write name=value as "
        f"{shlex.quote(f'{key}={proper}')}, the outer quotes for the shell"
    )


def _entry(text: str) -> str:
    word = re.fullmatch(r"[\w./+-]+", text, re.ASCII)
    return text if word else quoted(text)
