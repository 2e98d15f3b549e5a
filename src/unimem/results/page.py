"""A report as a list of blocks, written as Markdown and as one self-contained HTML page."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
tr.marked { background: #eef6ee; font-weight: 600; }
pre { background: #f4f4f4; padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 0.85rem; }
img { max-width: 100%; }
figure { margin: 1.5rem 0; }
figcaption { font-size: 0.9rem; color: #555; }
"""


class Block(Protocol):
    """A part of a page."""

    def markdown(self) -> str:
        """Give it in Markdown."""
        ...

    def html(self) -> str:
        """Give it in HTML."""
        ...


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's title."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        """Give it in Markdown."""
        return f"{'#' * self.level} {self.text}"

    def html(self) -> str:
        """Give it in HTML."""
        return f"<h{self.level}>{html.escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str

    def markdown(self) -> str:
        """Give it in Markdown."""
        return self.text

    def html(self) -> str:
        """Give it in HTML."""
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is."""

    text: str

    def markdown(self) -> str:
        """Give it in Markdown; more backquotes around it than it holds in a row."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        return f"{fence}\n{self.text}\n{fence}"

    def html(self) -> str:
        """Give it in HTML."""
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True)
class Table:
    """A table; the rows whose places are in `marked` stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()

    def markdown(self) -> str:
        """Give it in Markdown; a marked row is bold."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)]]
        for i, row in enumerate(self.rows):
            cells = [cell.replace("|", "\\|") for cell in row]
            lines.append([f"**{cell}**" for cell in cells] if i in self.marked else cells)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        """Give it in HTML."""
        lines = [f"<tr>{self._cells('th', self.head)}</tr>"]
        for i, row in enumerate(self.rows):
            mark = ' class="marked"' if i in self.marked else ""
            lines.append(f"<tr{mark}>{self._cells('td', row)}</tr>")
        return "\n".join(['<div class="wide"><table>', *lines, "</table></div>"])

    def _cells(self, tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A PNG file, named relative to the page, and what it shows."""

    path: Path
    caption: str

    def markdown(self) -> str:
        """Give it in Markdown."""
        return f"![{self.caption}]({self.path.name})\n\n{self.caption}"

    def html(self) -> str:
        """Give it in HTML, with the picture in it."""
        data = base64.b64encode(self.path.read_bytes()).decode()
        caption = html.escape(self.caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def as_markdown(blocks: Sequence[Block]) -> str:
    """Give the page in Markdown; its pictures are files beside it."""
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """Give the page in HTML: one file that needs no other."""
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
