import numpy as np
import pytest

from unimem.evaluation.claims import known_truth, same_weights
from unimem.evaluation.tokens import TokenTable

LENGTH = 40


def table(documents=20, seed=0, **levels):
    """Documents that differ, and columns that lie a level above what they share."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(np.random.default_rng(9).normal(2, 0.5, documents), LENGTH)
    columns = {
        name: [
            (shared + level + rng.normal(0, 0.05, shared.shape))[i * LENGTH : (i + 1) * LENGTH]
            for i in range(documents)
        ]
        for name, level in levels.items()
    }
    return TokenTable.of([f"document-{i}" for i in range(documents)], columns)


GOOD = {"own": -0.3, "off": 0.5, "other": 1.0, "bound_none": 0.0, "bound_memory": -0.4}


def judge(memory=None, *, leak=False, seeds=1):
    return known_truth(
        [table(seed=i, **(GOOD | (memory or {}))) for i in range(seeds)],
        [table(seed=10 + i, own=0.1) for i in range(seeds)],
        first=10,
        segment_length=40,
        vocab_size=8,
        leak=leak,
    )


def test_all_claims_hold():
    exhibit = judge()
    assert exhibit.verdict == "PASS" and exhibit.scope.startswith("tokens at positions 10 to 40")
    own = exhibit.levels["model with memory"]
    assert (own.documents, own.tokens) == (20, 20 * 30)
    gain = exhibit.differences["model with memory - best possible without"]
    assert gain.mean == pytest.approx(-0.3, abs=0.01) and gain.high < -0.25
    against = exhibit.differences["model with memory - model without"]
    assert against.mean == pytest.approx(-0.4, abs=0.01)


@pytest.mark.parametrize(
    ("memory", "leak", "broken"),
    [
        ({"own": 0.05}, False, 0),
        ({"own": -0.03}, False, 0),  # within what the bound leaves out, ln 8 / 40
        ({"other": 0.4}, False, 1),
        ({}, True, 2),
    ],
)
def test_each_claim_can_fail(memory, leak, broken):
    exhibit = judge(memory, leak=leak)
    assert exhibit.verdict == "FAIL"
    assert [i for i, claim in enumerate(exhibit.claims) if not claim.holds] == [broken]


def test_seeds_are_averaged():
    exhibit = judge(seeds=3)
    assert exhibit.verdict == "PASS"
    assert exhibit.levels["model with memory"].tokens == 20 * 30


def test_same_weights():
    good = table(own=-0.2, off=0.0, other=0.1)
    assert same_weights(good, first=0, leak=False).verdict == "PASS"
    known = table(own=-0.2, off=0.0, other=0.1, bound_none=-0.1)
    assert same_weights(known, first=0, leak=False).verdict == "PASS"
    assert same_weights(known, first=0, leak=True).verdict == "FAIL"
    assert same_weights(good, first=0, leak=False, judged=False).verdict is None
    useless = table(own=0.0, off=0.0, other=0.1)
    exhibit = same_weights(useless, first=0, leak=False)
    assert [claim.holds for claim in exhibit.claims] == [False, True]
    blind = same_weights(table(own=-0.1, off=0.0, other=-0.1), first=0, leak=False)
    assert [claim.holds for claim in blind.claims] == [True, False]
