import base64
import math

from unimem.results.render.blocks import (
    Code,
    Contents,
    Finding,
    Findings,
    Heading,
    Measured,
    Paragraph,
    Picture,
    Table,
)
from unimem.results.render.page import as_html, as_markdown


def test_html_escapes_and_stands_alone(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    page = as_html("a < b", [Paragraph("1 < 2"), Picture(picture, 'say "x"')])
    assert "<title>a &lt; b</title>" in page and "<p>1 &lt; 2</p>" in page
    assert f"data:image/png;base64,{base64.b64encode(b'png').decode()}" in page
    assert 'alt="say &quot;x&quot;"' in page
    assert "http" not in page and str(tmp_path) not in page


def test_markdown_names_the_picture_beside_it(tmp_path):
    text = as_markdown([Heading("T", 1), Picture(tmp_path / "a.png", "what")])
    assert text == "# T\n\n![what](a.png)\n\nwhat\n"


def test_marked_rows_stand_out():
    rows = [["x|y", "1"], ["z", "2"]]
    table = Table(name="t", head=["a", "b"], rows=rows, marked=frozenset({1}))
    assert table.markdown().splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
        "| **z** | **2** |",
    ]
    assert table.html().count('<tr class="marked"><td>z</td>') == 1


def test_code_is_fenced_by_more_backquotes_than_it_holds():
    assert Code("```\nx\n```").markdown() == "````\n```\nx\n```\n````"


def test_links_lead_to_headings():
    heading = Heading("Where the numbers (all) come from")
    assert heading.anchor == "where-the-numbers-all-come-from"
    page = as_html("t", [Contents([heading]), heading])
    assert f'href="#{heading.anchor}"' in page and f'id="{heading.anchor}"' in page
    assert Contents([heading]).markdown() == f"- [{heading.text}](#{heading.anchor})"


def test_a_number_has_its_interval_beside_it_in_text_and_below_it_on_the_page():
    number = Measured(0.5, 0.25, 0.75, "+.2f")
    table = Table(name="t", head=["a", "b"], rows=[["x", number]])
    assert table.markdown().endswith("| x | +0.50 [+0.25, +0.75] |")
    assert "<td>+0.50<small>[+0.25, +0.75]</small></td>" in table.html()
    assert str(Measured(1.0, math.nan, math.nan, ".1f")) == "1.0 one document"


def test_text_tables_are_left_aligned():
    assert "| --- | --- |" in Table(name="t", head=["a", "b"], rows=[], prose=True).markdown()


def test_every_verdict_of_a_statement_is_shown():
    findings = Findings([Finding("1 < 2", [("held", "a: 3 < 4"), ("did not hold", "b: no")])])
    assert findings.markdown().splitlines() == [
        "- 1 < 2",
        "  - **held**: a: 3 < 4",
        "  - **did not hold**: b: no",
    ]
    html = findings.html()
    assert "1 &lt; 2" in html and '<span class="verdict did-not-hold">did not hold</span>' in html
