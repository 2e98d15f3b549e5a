import base64

from unimem.results.page import Code, Heading, Paragraph, Picture, Table, as_html, as_markdown


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
    table = Table(["a", "b"], [["x|y", "1"], ["z", "2"]], frozenset({1}))
    assert table.markdown().splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
        "| **z** | **2** |",
    ]
    assert table.html().count('<tr class="marked"><td>z</td>') == 1


def test_code_is_fenced_by_more_backquotes_than_it_holds():
    assert Code("```\nx\n```").markdown() == "````\n```\nx\n```\n````"
