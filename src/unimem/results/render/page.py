"""A report as Markdown, and as one self-contained HTML page."""

from collections.abc import Sequence

from unimem.results.escape import in_html
from unimem.results.render.blocks import Block

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; padding-top: 0.5rem; border-top: 1px solid #ddd; }
a { color: #0055a0; }
nav ul { columns: 16rem; padding-left: 1.2rem; }
/* A table that is wider than the page has a shadow where it goes on. */
.wide { overflow-x: auto; margin: 1rem 0; background:
  linear-gradient(to right, transparent, #fff 60%) right / 3rem 100% no-repeat local,
  linear-gradient(to left, #aaa, transparent) right / 0.8rem 100% no-repeat; }
/* Borders that are not collapsed stay with the sticky column, and rows of whole pixels keep them
  level with the borders beside it. */
table { border-collapse: separate; border-spacing: 0; font-size: 14px; line-height: 20px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 11px; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
wbr { display: none; }
td small { display: block; color: #666; font-size: 12px; line-height: 16px; }
tr.marked, tr.marked td:first-child { background: #e6f2e6; font-weight: 600; }
table.prose { width: 100%; }
table.prose td, table.prose th { text-align: left; white-space: normal; position: static;
  overflow-wrap: normal; }
table.prose td:nth-child(2) { overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 0.85rem; }
p.csv { margin: -0.6rem 0 1rem; font-size: 0.8rem; }
figure { margin: 1.5rem 0; overflow-x: auto; }
img { display: block; width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #555; position: sticky; left: 0; }
.findings > li { margin: 0.8rem 0; font-weight: 600; }
.findings ul { list-style: none; padding: 0; }
.findings ul li { font-weight: 400; margin: 0.3rem 0; }
.verdict { border-radius: 0.3rem; padding: 0.05rem 0.45rem; font-weight: 600; color: #fff;
  white-space: nowrap; background: #666; }
.verdict.held { background: #1a7340; }
.verdict.did-not-hold { background: #a8381b; }
@media (max-width: 40rem) {
  wbr { display: inline; }
  /* Labels of figures stay readable; a figure is moved sideways. */
  img { min-width: 28rem; }
  th, td { padding: 5px 7px; }
  td:first-child, th:first-child { min-width: 6.5rem; max-width: 8.5rem; white-space: normal;
    overflow-wrap: anywhere; }
}
"""


def as_markdown(blocks: Sequence[Block]) -> str:
    """Return the page in Markdown; its pictures are files beside it."""
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """Return the page in HTML: one file that needs no other."""
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{in_html(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
