"""The top of a report: what was published, and whether it held here."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml

from unimem.results.claims.judges import Judgement, Verdict
from unimem.results.claims.statements import Check
from unimem.results.comparison import SEEDS, CorpusComparison
from unimem.results.frame_tables import short
from unimem.results.render.blocks import Block, Code, Finding, Findings, Heading, Paragraph, Table
from unimem.results.select import Select
from unimem.results.study import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of a statement on one corpus; `corpus` is None if none has all it speaks of."""

    check: Check
    corpus: str | None
    judgement: Judgement

    def record(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "statement": self.check.given,
            "sentence": self.check.sentence,
            "corpus": self.corpus,
            "verdict": self.judgement.verdict,
            "reason": self.judgement.reason,
            "numbers": self.judgement.numbers,
        }


def decide(checks: Sequence[Check], comparisons: Sequence[CorpusComparison]) -> list[Decision]:
    """Judge every statement on every corpus that it speaks of."""
    return [decision for check in checks for decision in _decide(check, comparisons)]


def claim_blocks(
    study: StudyRecord, comparisons: Sequence[CorpusComparison], decisions: Sequence[Decision]
) -> Iterator[Block]:
    """Show the claim, the verdicts, and how far what was done here is from what was published."""
    claim, published = (study.fields.get(key) for key in ("claim", "published"))
    if claim is None and published is None and not decisions:
        return
    said = claim is not None or published is not None
    heading = "The published claim, and whether it held here" if said else "What was checked"
    yield Heading(heading)
    if claim is not None:
        yield Paragraph(claim.strip()) if isinstance(claim, str) else _as_yaml(claim)
    if decisions:
        counts = Counter(decision.judgement.verdict for decision in decisions)
        told = [f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]]
        yield Paragraph(f"{', '.join(told)}.")
        yield Findings([*_findings(decisions, several=len(comparisons) > 1)])
    yield Paragraph(_scale(study, comparisons))
    if published is not None:
        yield Heading("Published numbers", 3)
        yield _published(published)


def _decide(check: Check, comparisons: Sequence[CorpusComparison]) -> Iterator[Decision]:
    concerned = [
        comparison for comparison in comparisons if _concerns(check, comparison, comparisons)
    ]
    for comparison in concerned:
        yield Decision(check=check, corpus=comparison.name, judgement=check.judge(comparison))
    if not concerned:
        reason = "No corpus has all the settings that it speaks of."
        judgement = Judgement(verdict="not decided", reason=reason, numbers={})
        yield Decision(check=check, corpus=None, judgement=judgement)


def _concerns(
    check: Check, comparison: CorpusComparison, comparisons: Sequence[CorpusComparison]
) -> bool:
    """Whether no setting that the statement speaks of is in other panels alone."""
    return all(
        _has(comparison, select) or not any(_has(other, select) for other in comparisons)
        for select in check.selects
    )


def _has(comparison: CorpusComparison, select: Select) -> bool:
    return any(select.matches(group.overrides) for group in comparison.groups)


def _findings(decisions: Sequence[Decision], *, several: bool) -> Iterator[Finding]:
    lines: dict[str, list[tuple[str, str]]] = {}
    for decision in decisions:
        where = f"{decision.corpus}: " if several and decision.corpus else ""
        judgement = decision.judgement
        lines.setdefault(decision.check.sentence, []).append(
            (judgement.verdict, f"{where}{judgement.reason}")
        )
    for sentence, verdicts in lines.items():
        yield Finding(sentence, verdicts)


def _scale(study: StudyRecord, comparisons: Sequence[CorpusComparison]) -> str:
    """Return at which scale the verdicts were found, which is not that of the publication."""
    readings = [r for comparison in comparisons for r in comparison.readings]
    parameters, tokens = (
        _range([r.recorded(key) for r in readings]) for key in ("parameters", "tokens_seen")
    )
    profile = study.fields.get("profile")
    named = f"profile {profile}, " if profile else ""
    starts = [base.result["tokens_seen"] for base in study.bases if base.result is not None]
    after = f" after {_range(starts)} of the base run" if starts else ""
    corpora = " and ".join(comparison.name for comparison in comparisons)
    return (
        f"Scale and data are not those of the publication: here {named}models of {parameters} "
        f"parameters, {tokens} tokens of training{after}, corpus: {corpora}. A verdict is one on "
        f"this scale: 'held' and 'did not hold' need {SEEDS} common seeds and an interval clear of "
        "the bound; each statement is judged by itself."
    )


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "unknown"
    low, high = f"{min(known):,.0f}", f"{max(known):,.0f}"
    return low if low == high else f"{low} to {high}"


def _published(said: Any) -> Block:
    """Show numbers by name as a table, or by row and column; anything else as it was written."""
    if isinstance(said, str):
        return Paragraph(said.strip())
    rows = said if isinstance(said, Mapping) else {}
    if rows and all(_scalar(value) for value in rows.values()):
        table = [[str(key), short(value)] for key, value in rows.items()]
        return Table(name="published", head=["", "published"], rows=table)
    inner = [row for row in rows.values() if isinstance(row, Mapping)]
    if rows and len(inner) == len(rows) and all(_scalar(x) for row in inner for x in row.values()):
        columns = list(dict.fromkeys(key for row in inner for key in row))
        table = [[str(k), *(short(row.get(c)) for c in columns)] for k, row in rows.items()]
        return Table(name="published", head=["", *map(str, columns)], rows=table)
    return _as_yaml(said)


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _as_yaml(said: Any) -> Code:
    return Code(yaml.safe_dump(said, allow_unicode=True, sort_keys=False).strip())
