"""Text that comes from elsewhere, as a name, a note or a foreign record, in each output format.

Every exporter escapes through here, so that text stays text: it is no markup, no link, no
formula, no command. Control characters are shown as escapes in all of them.
"""

import html
import re
from pathlib import PurePath

from unimem.words import printable

_SPECIAL = (
    r"[\\`*~|$]"
    r"|<(?=[A-Za-z/!?])"  # a tag or a link
    r"|&(?=#?\w+;)"  # a character by its name
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is not emphasis
    r"|!(?=\[)|\](?=[(\[:])|\[(?=\^)"  # a picture, a link, a footnote
)
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=#{1,6}(?:\s|$)|[-+=](?:[\s=-]|$)|>))")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_FORMULA = tuple("=+-@\t\n＝＋－＠")
_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
_LONGEST_NAME = 80


def in_markdown(text: str) -> str:
    """Return text for within a line of Markdown, also in a table; white space becomes spaces."""
    return re.sub(_SPECIAL, r"\\\g<0>", printable(" ".join(text.split())))


def as_paragraph(text: str) -> str:
    """Return text for a paragraph of Markdown: also its beginning is no heading, list or quote."""
    return _BLOCK.sub(r"\1\\", in_markdown(text))


def in_brackets(text: str) -> str:
    """Return text for the brackets of a link or a picture in Markdown."""
    return re.sub(rf"{_SPECIAL}|[\[\]]", r"\\\g<0>", printable(" ".join(text.split())))


def in_html(text: str) -> str:
    """Return text for HTML, within an element or a quoted attribute."""
    return html.escape(printable(text))


def in_latex(text: str) -> str:
    """Return text for a cell of a LaTeX tabular."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in printable(" ".join(text.split())))
    # At the start of a row, after the \\ of the one before, these belong to that \\.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def in_csv(text: str) -> str:
    """Return text for a field of CSV: spreadsheets read what begins with a quote as text.

    Text that a spreadsheet would compute, as `=1+1`, gets a quote in front; numbers, and a dash for
    a missing value, stay as they are.
    """
    shown = printable(text)
    harmless = (
        not shown.lstrip(" ").startswith(_FORMULA) or shown == "-" or _NUMBER.fullmatch(shown)
    )
    return shown if harmless else f"'{shown}"


def as_file_name(text: str) -> str:
    """Return text as a part of a file name: letters, digits, and `_ . = -`; long text is cut."""
    return re.sub(r"[^\w.=-]+", "_", PurePath(text).as_posix())[:_LONGEST_NAME]
