"""The parts of a report, each of which writes itself as Markdown and as HTML.

Their text is text in both: see `unimem.results.escape`.
"""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unimem.results.escape import as_paragraph, in_brackets, in_html, in_markdown
from unimem.results.frame_tables import as_csv
from unimem.words import printable, written


class Block(Protocol):
    """A part of a page."""

    def markdown(self) -> str:
        """Return it in Markdown."""
        ...

    def html(self) -> str:
        """Return it in HTML."""
        ...


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's title."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """The name that links to it have, the same as GitHub gives it."""
        return re.sub(r"[^\w\- ]", "", self.text.lower()).replace(" ", "-")

    def markdown(self) -> str:
        """Return it in Markdown."""
        return f"{'#' * self.level} {in_markdown(self.text)}"

    def html(self) -> str:
        """Return it in HTML."""
        # Those below repeat: each corpus has the same ones.
        anchor = f' id="{self.anchor}"' if self.level == 2 else ""
        return f"<h{self.level}{anchor}>{in_html(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Contents:
    """Links to headings."""

    headings: Sequence[Heading]

    def markdown(self) -> str:
        """Return it in Markdown."""
        links = (f"- [{in_brackets(h.text)}](#{h.anchor})" for h in self.headings)
        return "\n".join(links)

    def html(self) -> str:
        """Return it in HTML."""
        links = (f'<a href="#{h.anchor}">{in_html(h.text)}</a>' for h in self.headings)
        return f"<nav><ul>{''.join(f'<li>{link}</li>' for link in links)}</ul></nav>"


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str

    def markdown(self) -> str:
        """Return it in Markdown, in one line."""
        return as_paragraph(self.text)

    def html(self) -> str:
        """Return it in HTML."""
        return f"<p>{in_html(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is."""

    text: str

    def markdown(self) -> str:
        """Return it in Markdown; more backquotes around it than it holds in a row."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        return f"{fence}\n{printable(self.text)}\n{fence}"

    def html(self) -> str:
        """Return it in HTML."""
        return f"<pre>{in_html(self.text)}</pre>"


@dataclass(frozen=True)
class Measured:
    """A number of a table with its interval (NaN if it is not known), written in a format."""

    mean: float
    low: float
    high: float
    form: str

    @property
    def interval(self) -> str:
        """The interval alone."""
        if math.isnan(self.low):
            return "one document"
        return f"[{written(self.low, self.form)}, {written(self.high, self.form)}]"

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "no number"
        return f"{written(self.mean, self.form)} {self.interval}"

    def html(self) -> str:
        """Return it in HTML: the interval below the number."""
        if math.isnan(self.mean):
            return str(self)
        return f"{written(self.mean, self.form)}<small>{self.interval}</small>"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the rows whose places are in `marked` stand out. `prose` is text, not numbers."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Measured]]
    marked: frozenset[int] = frozenset()
    prose: bool = False

    def markdown(self) -> str:
        """Return it in Markdown; a marked row is bold."""
        rule = "---" if self.prose else "---:"
        lines = [[in_markdown(name) for name in self.head], ["---", *[rule] * (len(self.head) - 1)]]
        for i, row in enumerate(self.rows):
            cells = [str(c) if isinstance(c, Measured) else in_markdown(c) for c in row]
            lines.append([f"**{cell}**" for cell in cells] if i in self.marked else cells)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def columns(self) -> dict[str, list[str | float | None]]:
        """Return the columns by name: an interval is two of its own, and numbers are numbers."""
        found: dict[str, list[str | float | None]] = {}
        for i, name in enumerate(self.head):
            cells = [row[i] for row in self.rows]
            if not any(isinstance(cell, Measured) for cell in cells):
                found[name] = _numbers([str(cell) for cell in cells])
                continue
            for part in ("mean", "low", "high"):
                head = name if part == "mean" else f"{name}, {part}"
                found[head] = [getattr(c, part) if isinstance(c, Measured) else None for c in cells]
        return found

    def html(self) -> str:
        """Return it in HTML."""
        kind = ' class="prose"' if self.prose else ""
        lines = [f"<tr>{self._cells('th', self.head)}</tr>"]
        for i, row in enumerate(self.rows):
            mark = ' class="marked"' if i in self.marked else ""
            lines.append(f"<tr{mark}>{self._cells('td', row)}</tr>")
        return "\n".join([f'<div class="wide"><table{kind}>', *lines, "</table></div>"])

    def _cells(self, tag: str, cells: Sequence[str | Measured]) -> str:
        # Names of settings may be broken where a narrow page has to break them.
        texts = (
            c.html() if isinstance(c, Measured) else in_html(c).replace("_", "_<wbr>")
            for c in cells
        )
        return "".join(f"<{tag}>{text}</{tag}>" for text in texts)


@dataclass(frozen=True)
class Download:
    """A link to a table as a CSV file: a file beside the text, and in the HTML page itself."""

    table: Table

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.table.name}.csv"

    def csv(self) -> str:
        """Return the table as comma-separated values, numbers in full; NaN is an empty field."""
        columns = self.table.columns()
        rows = [
            {k: None if v != v else v for k, v in zip(columns, row, strict=True)}
            for row in zip(*columns.values(), strict=True)
        ]
        return f"{as_csv(rows, list(columns))}\n"

    def markdown(self) -> str:
        """Return it in Markdown."""
        return f"[{in_brackets(self.file)}]({self.file})"

    def html(self) -> str:
        """Return it in HTML."""
        data = base64.b64encode(self.csv().encode()).decode()
        name = in_html(self.file)
        link = f'<a download="{name}" href="data:text/csv;charset=utf-8;base64,{data}">{name}</a>'
        return f'<p class="csv">{link}</p>'


def _numbers(texts: Sequence[str]) -> list[str | float | None]:
    """Return a column as numbers if it holds nothing else; a dash is none."""
    try:
        return [None if text == "-" else float(text.replace(",", "")) for text in texts]
    except ValueError:
        return list(texts)


@dataclass(frozen=True)
class Finding:
    """A statement, and for each place where it was judged the verdict and what it rests on."""

    statement: str
    verdicts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """Statements with their verdicts."""

    findings: Sequence[Finding]

    def markdown(self) -> str:
        """Return them in Markdown."""
        lines: list[str] = []
        for finding in self.findings:
            lines.append(f"- {as_paragraph(finding.statement)}")
            lines += [f"  - **{v}**: {in_markdown(reason)}" for v, reason in finding.verdicts]
        return "\n".join(lines)

    def html(self) -> str:
        """Return them in HTML."""
        return f'<ul class="findings">{"".join(map(self._item, self.findings))}</ul>'

    def _item(self, finding: Finding) -> str:
        lines = (
            f'<li><span class="verdict {verdict.replace(" ", "-")}">{verdict}</span> '
            f"{in_html(reason)}</li>"
            for verdict, reason in finding.verdicts
        )
        return f"<li>{in_html(finding.statement)}<ul>{''.join(lines)}</ul></li>"


@dataclass(frozen=True)
class Picture:
    """A PNG file, named relative to the page, and what it shows."""

    path: Path
    caption: str

    def markdown(self) -> str:
        """Return it in Markdown."""
        name = self.path.name
        return f"![{in_brackets(self.caption)}]({name})\n\n{as_paragraph(self.caption)}"

    def html(self) -> str:
        """Return it in HTML, with the picture in it: the SVG file beside it if there is one."""
        vector = self.path.with_suffix(".svg")
        path, kind = (vector, "svg+xml") if vector.is_file() else (self.path, "png")
        data = base64.b64encode(path.read_bytes()).decode()
        caption = in_html(self.caption)
        image = f'<img src="data:image/{kind};base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
