"""Whatever text a name or a note holds, it is the same text in every format, and nothing else."""

import base64
import csv
import html
import io
import re
from html.parser import HTMLParser
from xml.dom import minidom

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from unimem.results.canvas import colours_of, new_figure, save
from unimem.results.escape import as_file_name, in_csv
from unimem.results.frame_tables import as_csv, as_latex, as_text, write_parquet
from unimem.results.plots import Point, plot_rows
from unimem.results.render.blocks import (
    Code,
    Contents,
    Download,
    Finding,
    Findings,
    Heading,
    Paragraph,
    Picture,
    Table,
)
from unimem.results.render.page import as_html, as_markdown
from unimem.words import printable

PIECES = st.sampled_from(
    [*"\\`*_{}[]()<>#+-.!|~$&%^@=:/\"'\n\t\r \x1b\x07\u202e\ud800aé1", "<script>alert(1)</script>"]
    + ["[x](javascript:alert(1))", "![x](y)", "\n\n# b", "[x]: javascript:x", "&lt;", "\\input{a}"]
    + ["<img src=x onerror=y>", "=1+1", "-0.5", "https://a.b", "```", "---", "1. ", "$\\foo$"]
)
TEXT = st.one_of(st.text(), st.lists(PIECES, max_size=8).map("".join))
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def flat(text: str) -> str:
    """The text as a reader sees it, in one line."""
    return " ".join(printable(" ".join(text.split())).split())


def tokens(markdown: str):
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in parser.parse(markdown):
        yield token
        yield from token.children or ()


def kinds(markdown: str) -> dict[str, int]:
    found = [token.type for token in tokens(markdown)]
    return {kind: found.count(kind) for kind in found}


def words(markdown: str) -> str:
    return "".join(token.content for token in tokens(markdown) if token.type == "text")


MARKUP = {"html_inline", "html_block", "link_open", "image", "code_inline", "fence", "code_block",
          "em_open", "heading_open", "bullet_list_open", "ordered_list_open", "hr",
          "blockquote_open", "strong_open", "s_open", "softbreak", "hardbreak"}  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(TEXT)
@example("<script>alert(1)</script>")
@example("[x](javascript:alert(1))")
@example("\\](javascript:x)")
@example("1. a")
def test_markdown_of_a_paragraph_is_its_text(text):
    made = Paragraph(text).markdown()
    assert not MARKUP & kinds(made).keys()
    assert flat(words(made)) == flat(text)


@settings(deadline=None, max_examples=200)
@given(TEXT, TEXT)
@example("a|b", "\\|")
def test_markdown_of_a_page_has_the_markup_of_the_page_alone(text, other):
    table = Table(name="t", head=["a", text], rows=[[text, other], [other, "1"]])
    blocks = [
        Heading(text, 2),
        Contents([Heading(text)]),
        table,
        Findings([Finding(text, [("held", other)])]),
    ]
    found = kinds(as_markdown(blocks))
    assert found["td_open"] == 4 and found["th_open"] == 2
    assert found["heading_open"] == found["link_open"] == found["strong_open"] == 1
    assert found["list_item_open"] == 3
    page = {"heading_open", "link_open", "strong_open", "bullet_list_open"}
    assert not (MARKUP - page) & found.keys()
    (link,) = [t for t in tokens(as_markdown(blocks)) if t.type == "link_open"]
    assert str(link.attrs["href"]).startswith("#")


@given(TEXT)
def test_code_stays_in_its_fence(text):
    (fence,) = tokens(Code(text).markdown())
    assert fence.type == "fence" and not CONTROL.search(fence.content)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


@settings(deadline=None, max_examples=200)
@given(TEXT, TEXT)
def test_html_has_the_tags_of_the_page_alone(tmp_path_factory, text, other):
    def page(one, two):
        picture = tmp_path_factory.getbasetemp() / "a.png"
        picture.write_bytes(b"")
        table = Table(name=as_file_name(one), head=["a", one], rows=[[one, two]])
        blocks = [Heading(one), Contents([Heading(one)]), Paragraph(one), Code(one), table,
                  Download(table), Findings([Finding(one, [("held", two)])]),
                  Picture(picture, one)]  # fmt: skip
        made = as_html(one, blocks)
        made.encode()
        assert not CONTROL.search(made)
        read = Tags()
        read.feed(made)
        return [tag for tag in read.tags if tag != "wbr"], read.attributes

    assert page(text, other) == page("a", "b")


@settings(max_examples=300)
@given(TEXT, st.floats(allow_nan=False))
@example("=cmd|' /C calc'!A0", 1.0)
@example("-0.5", -0.5)
def test_csv_reads_back_and_holds_no_formula(text, number):
    rows = list(
        csv.reader(io.StringIO(as_csv([{text: number, f"{text}b": text}], [text, f"{text}b"])))
    )
    assert len(rows) == 2 and float(rows[1][0]) == number
    for cell in (rows[0][0], rows[1][1]):
        assert cell.removeprefix("'") == printable(text).removeprefix("'")
        if cell.lstrip(" ").startswith(tuple("=+-@\t")) and cell != "-":
            float(cell)


@pytest.mark.parametrize("number", ["-0.5", "+3", "1e-5", "-1.5E+10", "-"])
def test_numbers_stay_numbers_in_csv(number):
    assert in_csv(number) == number


@settings(max_examples=300)
@given(TEXT)
@example("\\input /etc/passwd")
@example("[1]")
def test_latex_has_no_command_but_those_that_show_a_character(text):
    *_, row, _, _ = as_latex([{"a": text, "b": text}], ["a", "b"]).split("\n")
    row = row.removesuffix(r" \\")
    assert not row.startswith(("[", "*"))
    shown = row
    commands = ("backslash \\", "asciicircum ^", "asciitilde ~", "less <", "greater >", "bar |")
    for command, letter in map(str.split, commands):
        shown = shown.replace(rf"\text{command}{{}}", f"\x00{ord(letter)}\x00")
    shown = re.sub(r"\\([&%$#_{}])", lambda m: f"\x00{ord(m[1])}\x00", shown)
    one, other = shown.split(" & ")
    assert one == other and not set(one.removeprefix("{}")) & set("\\{}^~<>|%$#_&\n")
    seen = re.sub(r"\x00(\d+)\x00", lambda m: chr(int(m[1])), one.removeprefix("{}"))
    assert flat(seen) == flat(text)


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_terminal_gets_no_control_characters(texts):
    rows = [{"a": text, "b": 1} for text in texts]
    lines = as_text(rows, ["a", "b"]).split("\n")
    assert len(lines) == len(rows) + 1
    assert not any(CONTROL.search(line) or "\t" in line for line in lines)


@given(TEXT)
def test_a_file_name_is_in_its_folder(text):
    name = f"{as_file_name(text)}.csv"
    assert "/" not in name and "\x00" not in name and len(name.encode()) < 255 - len("gain_by_.svg")


def test_parquet_takes_half_a_character(tmp_path):
    write_parquet([{"a": "\ud800"}, {"a": "b"}], ["a"], tmp_path / "t.parquet")


NAMES = [r"$\foo$", "$x$ \x1b[31m<&>", "a\x00b", "--> ]]>", "名"]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_shows_names_as_they_are(tmp_path, name, caplog):
    point = Point(x=0, mean=1, low=0.5, high=2)
    path = tmp_path / "a.png"
    rows = {name: point, "b": point}
    plot_rows(path, xlabel=name, rows=rows, colours=colours_of([*rows]), title=name)
    shown = minidom.parse(str(path.with_suffix(".svg"))).toxml()
    assert html.escape(printable(name).replace("--", "")[:3], quote=False) in shown.replace(
        "- ", ""
    )
    assert ("the font has no sign" in caplog.text) == (name == "名")
    assert base64.b64encode(path.read_bytes())


def test_what_matplotlib_writes_itself_stays_a_formula(tmp_path):
    figure, axes = new_figure()
    axes.plot([1, 1e6], [1, 2], label="$1 and $2")
    axes.set_xscale("log")
    save(figure, tmp_path / "a.png", axes)
    texts = [label for label in axes.get_xticklabels() if label.get_text()]
    assert texts and all(label.get_parse_math() for label in texts)
    assert not axes.xaxis.label.get_parse_math()
