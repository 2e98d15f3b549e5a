import math

import pytest
from helpers.made_study import Made, make_comparison

from unimem.results.claims.statements import read_checks

VANILLA = Made(overrides="method=vanilla", nll=2.0)


def judge(comparison, **statement):
    (check,) = read_checks([{key.rstrip("_"): value for key, value in statement.items()}])
    return check.judge(comparison)


def layers(*levels, **more):
    return [
        Made(overrides=f"method=custom injection_layer={i}", nll=nll, **more)
        for i, nll in enumerate(levels)
    ]


@pytest.mark.parametrize(
    ("nll", "uneven", "verdict"),
    [(1.5, 0.0, "held"), (2.5, 0.0, "did not hold"), (1.99, 0.5, "not decided")],
)
def test_lower_needs_an_interval_clear_of_zero(tmp_path, nll, uneven, verdict):
    comparison = make_comparison(
        tmp_path, VANILLA, Made(overrides="method=rmt", nll=nll, uneven=uneven)
    )
    found = judge(comparison, lower={"method": "rmt"}, than={"method": "vanilla"})
    assert found.verdict == verdict and found.numbers["mean"] == pytest.approx(nll - 2, abs=1e-6)
    assert ("the interval spans 0" in found.reason) == (verdict == "not decided")
    assert f"rmt at {nll + 0.35:.4f}" in found.reason and found.numbers["seeds"] == 3


def test_two_seeds_decide_nothing_and_the_missing_one_is_named(tmp_path):
    comparison = make_comparison(
        tmp_path, VANILLA, Made(overrides="method=rmt", nll=1.0, missing=(1,))
    )
    found = judge(comparison, lower={"method": "rmt"}, than={"method": "vanilla"})
    assert found.verdict == "not decided" and found.numbers["mean"] == pytest.approx(-1.0)
    assert "2 seeds in common, 3 are needed, not finished: method=rmt seed=1" in found.reason


@pytest.mark.parametrize(
    ("missing", "reason"),
    [((0, 1, 2), "not finished: rmt."), ((), "no setting is longformer.")],
)
def test_settings_that_are_not_there_are_named(tmp_path, missing, reason):
    comparison = make_comparison(tmp_path, VANILLA, Made(overrides="method=rmt", missing=missing))
    method = "rmt" if missing else "longformer"
    found = judge(comparison, lower={"method": method}, than={"method": "vanilla"})
    assert (found.verdict, found.reason, found.numbers) == ("not decided", reason, {})


def test_the_best_of_several_speaks_for_them_and_this_is_said(tmp_path):
    comparison = make_comparison(tmp_path, VANILLA, *layers(2.5, 1.5, 1.7))
    found = judge(comparison, lower={"injection_layer": "*"}, than={"method": "vanilla"})
    assert found.verdict == "held" and found.numbers["settings"] == ["injection_layer=1", "vanilla"]
    assert "injection_layer=1 was chosen as the lowest of 3 on these same tokens, " in found.reason
    other = judge(comparison, lower={"injection_layer": 2}, than={"injection_layer": "*"})
    assert other.verdict == "did not hold"
    assert other.numbers["settings"] == ["injection_layer=2", "injection_layer=1"]


@pytest.mark.parametrize(
    ("nll", "uneven", "verdict"),
    [(1.5, 0.0, "held"), (1.9, 0.0, "did not hold"), (1.79, 0.5, "not decided")],
)
def test_best_is_held_against_all_others(tmp_path, nll, uneven, verdict):
    own = Made(overrides="method=unimix", nll=nll, uneven=uneven)
    comparison = make_comparison(tmp_path, VANILLA, Made(overrides="method=rmt", nll=1.8), own)
    found = judge(comparison, best={"method": "unimix"})
    assert found.verdict == verdict and set(found.numbers["p"]) == {"vanilla", "rmt"}
    assert ("no significant difference to vanilla, rmt" in found.reason) == (
        verdict == "not decided"
    )
    assert ("lower: rmt" in found.reason) == (verdict == "did not hold")


def test_nothing_is_best_while_another_is_not_finished(tmp_path):
    rest = Made(overrides="method=rmt", missing=(0, 1, 2))
    comparison = make_comparison(tmp_path, VANILLA, Made(overrides="method=unimix", nll=1.0), rest)
    found = judge(comparison, best={"method": "unimix"})
    assert found.verdict == "not decided" and found.reason.endswith("not finished: rmt.")


@pytest.mark.parametrize(
    ("at_least", "uneven", "verdict"),
    [(0.7, 0.0, "held"), (0.9, 0.0, "did not hold"), (0.8, 0.2, "not decided")],
)
def test_share_is_of_the_gain(tmp_path, at_least, uneven, verdict):
    one, eleven = layers(1.6, 1.5)
    one = Made(overrides=one.overrides, nll=1.6, uneven=uneven)
    comparison = make_comparison(tmp_path, VANILLA, one, eleven)
    found = judge(
        comparison,
        share={"injection_layer": 0},
        of={"injection_layer": 1},
        from_={"method": "vanilla"},
        at_least=at_least,
    )
    assert found.verdict == verdict and found.numbers["mean"] == pytest.approx(0.8)
    assert found.numbers["bound"] == at_least
    assert f"the interval spans {at_least}" in found.reason or verdict != "not decided"


def test_share_of_the_gain_in_perplexity(tmp_path):
    comparison = make_comparison(tmp_path, VANILLA, *layers(1.6, 1.5))
    found = judge(
        comparison,
        share="injection_layer=0",
        of="injection_layer=1",
        from_="method=vanilla",
        at_least=0.7,
        on="perplexity",
    )
    # The documents add 0.35 to the mean of all, which leaves ratios of perplexities as they are.
    expected = (math.exp(2.0) - math.exp(1.6)) / (math.exp(2.0) - math.exp(1.5))
    assert found.verdict == "held" and found.numbers["mean"] == pytest.approx(expected, rel=1e-5)


def test_there_is_no_share_of_no_gain(tmp_path):
    comparison = make_comparison(tmp_path, VANILLA, *layers(1.6, 2.1))
    found = judge(
        comparison,
        share="injection_layer=0",
        of="injection_layer=1",
        from_="method=vanilla",
        at_least=0.5,
    )
    assert found.verdict == "not decided"
    assert found.reason.startswith(
        "custom injection_layer=1 has no clear gain over vanilla: -0.1000"
    )


def sizes(method, *levels):
    return [
        Made(overrides=f"method={method} memory.size={16 << i}", nll=nll)
        for i, nll in enumerate(levels)
    ]


def test_spread_is_the_range_over_common_values(tmp_path):
    # The last size of rmt is no one else's, and does not count.
    comparison = make_comparison(tmp_path, *sizes("unimix", 1.5, 1.4), *sizes("rmt", 2.0, 1.8, 1.0))
    found = judge(
        comparison, spread={"method": "unimix"}, over="memory.size", below={"method": "rmt"}
    )
    assert found.verdict == "held" and found.numbers["mean"] == pytest.approx(-0.1)
    assert "ranges over memory.size=16, 32: unimix 0.1000, rmt 0.2000" in found.reason
    other = judge(
        comparison, spread={"method": "rmt"}, over="memory.size", below={"method": "unimix"}
    )
    assert other.verdict == "did not hold"


def test_falls_compares_the_largest_value_with_the_smallest(tmp_path):
    comparison = make_comparison(
        tmp_path, *sizes("unimix", 1.5, 1.9, 1.4), *sizes("rmt", 2.0, 1.8, 2.2)
    )
    found = judge(comparison, falls={"method": "unimix"}, with_="memory.size")
    assert found.verdict == "held" and found.numbers["mean"] == pytest.approx(-0.1)
    assert judge(comparison, falls="method=rmt", with_="memory.size").verdict == "did not hold"
    several = judge(comparison, falls={"memory.size": "*"}, with_="memory.size")
    assert several.verdict == "not decided"
    assert "not one setting for each memory.size: unimix size=16 and rmt size=16" in several.reason
    one = judge(comparison, falls={"method": "unimix", "memory.size": 16}, with_="memory.size")
    assert one.reason == "there are fewer than two values of memory.size."


@pytest.mark.parametrize(("at_most", "verdict"), [(0.6, "held"), (0.4, "did not hold")])
@pytest.mark.parametrize("cost", ["training", "evaluation"])
def test_cheaper_is_a_ratio_of_what_was_recorded(tmp_path, cost, at_most, verdict):
    rmt = Made(overrides="method=rmt", seconds=20.0, tokens_per_second=500.0)
    comparison = make_comparison(tmp_path, VANILLA, rmt)
    found = judge(
        comparison, cheaper="method=vanilla", than="method=rmt", cost=cost, at_most=at_most
    )
    assert found.verdict == verdict and found.numbers["mean"] == 0.5


def test_cost_that_was_not_measured_or_elsewhere_is_not_compared(tmp_path):
    other = {"machine": {"platform": "Linux", "gpu": "H200"}}
    comparison = make_comparison(
        tmp_path,
        VANILLA,
        Made(overrides="method=rmt", more=other),
        Made(overrides="method=unimix", seconds=0.0),
    )
    for method, reason in (
        ("rmt", "the cells ran on different machines."),
        ("unimix", "unimix has no record of seconds of training."),
    ):
        found = judge(
            comparison,
            cheaper={"method": method},
            than="method=vanilla",
            cost="training",
            at_most=1,
        )
        assert (found.verdict, found.reason) == ("not decided", reason)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lower": "method=a"}, r"checks\[0\]: than is missing; `lower` takes lower, than, text"),
        ({"best": "method=a", "of": 3}, r"checks\[0\]: of is not known; `best` takes best, text"),
        ({"highest": "method=a"}, "is no statement; begin with one of lower, best, share"),
        ("best", "'best' is no statement"),
        ({"best": {}}, r"checks\[0\].best={}: write the overrides meant"),
        ({"falls": "a=1", "with": 3}, r"with=3: write the name of a setting that varies"),
        ({"share": "a=1", "of": "a=2", "from": "a=3", "at_least": "98 %"}, "write a number above"),
        (
            {"cheaper": "a=1", "than": "a=2", "cost": "money", "at_most": 1},
            "cost='money': write one of training, evaluation, memory",
        ),
    ],
)
def test_what_is_no_statement_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_checks([given])


def test_statements_are_a_list():
    with pytest.raises(ValueError, match="report.checks=.* is no list of statements"):
        read_checks({"best": "method=a"})


def test_a_statement_says_itself_or_what_it_is_told_to():
    first, second = read_checks(
        [
            {"share": "a=1", "of": "a=2", "from": "a=3", "at_least": 0.98},
            {"best": "method=unimix", "text": "UniMix wins"},
        ]
    )
    assert first.sentence == "a=1 has at least 0.98 of the gain in nll of a=2 over a=3."
    assert second.sentence == "UniMix wins"


def test_a_single_document_decides_no_loss(tmp_path):
    one = Made(overrides="method=rmt", nll=1.5, documents=1)
    comparison = make_comparison(tmp_path, Made(overrides="method=vanilla", documents=1), one)
    for statement in (
        {"lower": "method=rmt", "than": "method=vanilla"},
        {"share": "method=rmt", "of": "method=rmt", "from": "method=vanilla", "at_least": 0.5},
        {"best": "method=rmt"},
    ):
        assert judge(comparison, **statement).verdict == "not decided"
    found = judge(comparison, lower="method=rmt", than="method=vanilla")
    assert found.reason.endswith("3 seeds; a single document has no interval.")
    assert found.numbers["low"] is None
