"""Numbers in the words of a message, and foreign text that a message repeats."""

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys instead of showing it, what turns the direction of text, and halves of
characters, which no file can hold; a line feed and a tab are none of them."""


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Show control characters as escapes: \x1b, \u202e; with `one_line` \n and \t too."""
    shown = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.replace("\n", "\\n").replace("\t", "\\t") if one_line else shown


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Count a noun: `1 layer`, `2 layers`, `2 entries`; thousands are parted as in `12,000`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Say a time in its two largest units, rounded."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes), 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
