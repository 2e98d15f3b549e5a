"""Statements of a study file that its numbers decide: `report.checks`, a list.

    - {lower: SELECT, than: SELECT}
    - {best: SELECT}
    - {share: SELECT, of: SELECT, from: SELECT, at_least: 0.98}
    - {spread: SELECT, over: SETTING, below: SELECT}
    - {falls: SELECT, with: SETTING}
    - {cheaper: SELECT, than: SELECT, cost: training|evaluation|memory, at_most: 0.5}

A SELECT is explained in `select.py`, what each statement says in `judging.py`. `share` may say
`on: perplexity` (default nll). `text` of any statement is shown in place of our sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unimem.results.claims import judges as judging
from unimem.results.claims.judges import COSTS, Judgement, UndecidedError, Values
from unimem.results.comparison import CorpusComparison
from unimem.results.select import Select

Reader = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of statement: how its values are read, what it says, and who decides it.

    optional: readers with the values that are taken otherwise.
    """

    required: Mapping[str, Reader]
    optional: Mapping[str, tuple[Reader, Any]] = field(default_factory=dict)
    sentence: str
    judge: Callable[[CorpusComparison, Values], Judgement]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A statement, with its values read; `given` is as it was written."""

    kind: Kind
    values: dict[str, Any]
    given: dict[str, Any]

    @property
    def sentence(self) -> str:
        """What it says."""
        return self.given.get("text") or self.kind.sentence.format_map(self.values)

    @property
    def selects(self) -> list[Select]:
        """The settings that it speaks of."""
        return [value for value in self.values.values() if isinstance(value, Select)]

    def judge(self, comparison: CorpusComparison) -> Judgement:
        """Whether it holds on the panel's corpus."""
        try:
            return self.kind.judge(comparison, self.values)
        except UndecidedError as reason:
            return Judgement(verdict="not decided", reason=f"{reason}.", numbers={})


def read_report(given: Any) -> tuple[Select | None, tuple[Check, ...]]:
    """Read `report` of a study file: the reference of its differences, and its statements.

    Raises ValueError for anything else in it.
    """
    asked = given or {}
    known = ("reference", "checks")
    unknown = [key for key in asked if key not in known] if isinstance(asked, Mapping) else [given]
    if unknown:
        raise ValueError(f"report: {unknown[0]!r} is not known; it takes {', '.join(known)}")
    reference, checks = asked.get("reference"), read_checks(asked.get("checks", []))
    return None if reference is None else Select.read(reference), checks


def read_checks(given: Any) -> tuple[Check, ...]:
    """Read `report.checks`. Raises ValueError for what is no statement."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"report.checks={given!r} is no list of statements")
    return tuple(_read(f"report.checks[{i}]", statement) for i, statement in enumerate(given))


def _read(path: str, given: Any) -> Check:
    name = next((key for key in KINDS if isinstance(given, Mapping) and key in given), None)
    if name is None:
        raise ValueError(f"{path}: {given!r} is no statement; begin with one of {', '.join(KINDS)}")
    kind = KINDS[name]
    optional = {key: read for key, (read, _) in kind.optional.items()}
    readers = {**kind.required, **optional, "text": str}
    missing = [key for key in kind.required if key not in given]
    unknown = [str(key) for key in given if key not in readers]
    if missing or unknown:
        problem = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not known"
        raise ValueError(f"{path}: {problem}; `{name}` takes {', '.join(readers)}")
    values = {key: value for key, (_, value) in kind.optional.items()}
    for key in given:
        try:
            values[key] = readers[key](given[key])
        except ValueError as error:
            raise ValueError(f"{path}.{key}={given[key]!r}: {error}") from None
    return Check(kind=kind, values=values, given=dict(given))


def _setting(given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError("write the name of a setting that varies, as in memory.size")
    return given


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise ValueError("write a number above 0")
    return float(given)


def _one_of(*words: str) -> Reader:
    def read(given: Any) -> str:
        if given not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return given

    return read


KINDS = {
    "lower": Kind(
        required={"lower": Select.read, "than": Select.read},
        sentence="{lower} has a lower loss than {than}.",
        judge=judging.lower,
    ),
    "best": Kind(
        required={"best": Select.read},
        sentence="{best} has a lower loss than every other setting.",
        judge=judging.best,
    ),
    "share": Kind(
        required={
            "share": Select.read, "of": Select.read, "from": Select.read, "at_least": _number,
        },
        optional={"on": (_one_of("nll", "perplexity"), "nll")},
        sentence="{share} has at least {at_least:.3g} of the gain in {on} of {of} over {from}.",
        judge=judging.share,
    ),
    "spread": Kind(
        required={"spread": Select.read, "over": _setting, "below": Select.read},
        sentence="The loss of {spread} changes less over {over} than that of {below}.",
        judge=judging.spread,
    ),
    "falls": Kind(
        required={"falls": Select.read, "with": _setting},
        sentence="The loss of {falls} falls from the smallest {with} to the largest.",
        judge=judging.falls,
    ),
    "cheaper": Kind(
        required={
            "cheaper": Select.read, "than": Select.read, "cost": _one_of(*COSTS),
            "at_most": _number,
        },
        sentence="{cheaper} costs at most {at_most:.3g} of {than} in {cost}.",
        judge=judging.cheaper,
    ),
}  # fmt: skip
"""The statements that there are, by their first word."""
