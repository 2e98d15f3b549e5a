"""The table in docs/reliability.md names the rows of this suite, and what they counted."""

from collections import Counter

from faults.table import BEGIN, END, PAGE, Row, rewritten, rows_of_page, rows_of_suite, with_rows


def test_the_page_has_the_rows_of_the_suite():
    told = rows_of_page(PAGE.read_text())
    tested = {row.key for row, _ in rows_of_suite()}
    assert [key for key, count in Counter(row.key for row in told).items() if count > 1] == []
    missing = tested - {row.key for row in told}
    assert not missing, "run: make test-faults FAULT_TABLE=docs/reliability.md"
    assert {row.key for row in told} == tested
    assert len(told) >= 40


def test_every_row_of_the_page_was_injected_and_held():
    for row in rows_of_page(PAGE.read_text()):
        assert row.injected and row.injected == row.held, row


def test_rows_that_are_not_run_again_keep_their_numbers():
    (some, _), (other, _) = list(rows_of_suite())[:2]
    page = with_rows(PAGE.read_text(), [Row(*some.key, 3, 3, 1.0), Row("K9", "no", "such", 1, 1)])
    assert page.startswith(PAGE.read_text().partition(BEGIN)[0])
    assert page.endswith(PAGE.read_text().partition(END)[2])
    again = rows_of_page(rewritten(page, [Row(*other.key, 5, 5, 2.0)]))
    found = {row.key: row for row in again}
    assert found.keys() == {some.key, other.key}
    assert found[some.key].injected == 3 and found[other.key].injected == 5
