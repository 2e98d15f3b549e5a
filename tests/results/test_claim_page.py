from helpers.made_study import Made, make_study

from unimem.results.claims.page import claim_blocks, decide
from unimem.results.claims.statements import read_checks
from unimem.results.comparison import comparisons
from unimem.results.render.blocks import Code, Paragraph, Table

BOTH = (
    Made(overrides="data=markov method=vanilla"),
    Made(overrides="data=markov method=rmt", nll=1.5),
    Made(overrides="data=urn method=vanilla", corpus="urn"),
    Made(overrides="data=urn method=rmt", nll=2.5, corpus="urn"),
)


def decided(study, *statements):
    found = comparisons(study.groups())
    return [
        (decision.corpus, decision.judgement.verdict)
        for decision in decide(read_checks(statements), found)
    ]


def test_corpora_are_panels_whose_settings_need_not_name_them(tmp_path):
    found = comparisons(make_study(tmp_path, *BOTH).groups())
    assert [(comparison.name, comparison.labels) for comparison in found] == [
        ("markov", ["vanilla", "rmt"]),
        ("urn", ["vanilla", "rmt"]),
    ]


def test_corpora_of_one_name_are_told_apart(tmp_path):
    cells = [
        Made(overrides=f"data=markov data.length={n} method={method}", corpus="markov", more=more)
        for n in (64, 128)
        if (more := {"corpus": {"digest": str(n), "summary": "markov: 8 documents"}})
        for method in ("vanilla", "rmt")
    ]
    found = comparisons(make_study(tmp_path, *cells).groups())
    assert [comparison.name for comparison in found] == [
        "markov, data.length=64",
        "markov, data.length=128",
    ]


def test_a_statement_is_judged_on_every_corpus_that_it_speaks_of(tmp_path):
    study = make_study(tmp_path, *BOTH)
    rmt, vanilla = {"method": "rmt"}, {"method": "vanilla"}
    assert decided(study, {"lower": rmt, "than": vanilla}) == [
        ("markov", "held"),
        ("urn", "did not hold"),
    ]
    assert decided(study, {"lower": rmt | {"data": "urn"}, "than": vanilla}) == [
        ("urn", "did not hold")
    ]
    across = {"lower": rmt | {"data": "urn"}, "than": vanilla | {"data": "markov"}}
    assert decided(study, across) == [(None, "not decided")]
    assert decided(study, {"lower": {"method": "x"}, "than": vanilla}) == [
        ("markov", "not decided"),
        ("urn", "not decided"),
    ]


def test_the_claim_stands_with_its_verdicts_and_with_the_scale(tmp_path):
    study = make_study(tmp_path, *BOTH, claim="RMT helps.", profile="cpu", published={"rmt": 9.5})
    found = comparisons(study.groups())
    decisions = decide(read_checks([{"lower": "method=rmt", "than": "method=vanilla"}]), found)
    text = "\n".join(block.markdown() for block in claim_blocks(study, found, decisions))
    assert "RMT helps." in text and "1 held, 1 did not hold." in text
    assert "- rmt has a lower loss than vanilla.\n  - **held**: markov: rmt at 1.8500" in text
    assert "profile cpu, models of 100 parameters, 1,000 tokens of training" in text
    assert "corpus: markov and urn" in text and "| rmt | 9.5 |" in text


def test_published_numbers_are_a_table_if_they_can_be(tmp_path):
    plain, grid, other = (
        [*claim_blocks(make_study(tmp_path / name, *BOTH, published=published), [], [])][-1]
        for name, published in (
            ("a", {"x": 1.5}),
            ("b", {"x": {"c": 1.5}, "y": {"d": 2}}),
            ("c", [1, 2]),
        )
    )
    assert isinstance(plain, Table) and plain.rows == [["x", "1.5"]]
    assert isinstance(grid, Table) and grid.head == ["", "c", "d"]
    assert grid.rows == [["x", "1.5", "-"], ["y", "-", "2"]]
    assert other == Code("- 1\n- 2")


def test_without_a_claim_there_is_no_section(tmp_path):
    assert [*claim_blocks(make_study(tmp_path, *BOTH), [], [])] == []
    told = [*claim_blocks(make_study(tmp_path / "b", *BOTH, claim="So."), [], [])]
    assert told[1] == Paragraph("So.")
