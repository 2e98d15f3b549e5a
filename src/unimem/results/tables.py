"""The tables of a study's report."""

from collections.abc import Iterator, Sequence

from unimem.evaluation.statistics import Estimate, perplexity
from unimem.results.comparison import CorpusComparison, p_words
from unimem.results.figures import evaluation_cost, training_cost
from unimem.results.frame_tables import short
from unimem.results.losses import CONTROLS, Readings
from unimem.results.render.blocks import Block, Code, Heading, Measured, Paragraph, Table
from unimem.results.study import StudyRecord, differing
from unimem.words import written

GAP_CLOSED = "share of the gap closed"
TIES = "≈: not significantly different from the lowest loss."
LOSSES = "losses"
"""What the name of a table of losses ends with."""


def panel_tables(comparison: CorpusComparison, prefix: str) -> Iterator[Block]:
    """Show losses, differences and costs on one corpus; the tables' names begin with `prefix`."""
    yield from _levels(comparison, f"{prefix}{LOSSES}")
    if len(comparison.readings) > 1:
        yield from _differences(comparison, f"{prefix}differences")
    yield from _controls(comparison, f"{prefix}controls")
    yield from _costs(comparison, f"{prefix}cost")


def study_tables(study: StudyRecord, comparisons: Sequence[CorpusComparison]) -> Iterator[Block]:
    """Return what the cells ran on, what their names stand for, and where their folders are."""
    yield Heading("Where the numbers come from")
    yield Table(
        name="provenance", head=["", "value", "cells"], rows=[*_provenance(study)], prose=True
    )
    yield Heading("What the names of settings stand for")
    yield from _settings(study, comparisons)
    yield Heading("Cells")
    rows = [["base run: " + base.label, base.folder.name] for base in study.bases]
    rows += [[cell.label, cell.folder.name] for cell in study.cells]
    head = ["cell", "folder, which ends in its signature"]
    yield Table(name="cells", head=head, rows=rows, prose=True)


def _levels(comparison: CorpusComparison, name: str) -> Iterator[Block]:
    bits = [r.recorded("evaluation", "scores", "own", "bits_per_byte") for r in comparison.readings]
    gaps = [r.gap_closed() for r in comparison.readings]
    tokens = [r.recorded("tokens_seen") for r in comparison.readings]
    known = [count for count in tokens if count]
    # Documents end where they end, so that the same steps hold a few tokens more or less.
    unequal = bool(known) and max(known) > 1.02 * min(known)
    rows: list[list[str | Measured]] = []
    for i, (r, level, gap) in enumerate(
        zip(comparison.readings, comparison.levels, gaps, strict=True)
    ):
        mark = " ≈" if i in comparison.ties and len(comparison.ties) > 1 else ""
        row = [f"{r.group.label}{mark}", _measured(level, ".4f"), _perplexity(level, ".3f")]
        row += [short(bits[i])] if any(bits) else []
        row += [] if gap is None else [_measured(gap, ".1%")]
        row += [f"{tokens[i] or 0:,.0f}"] if unequal else []
        rows.append([*row, f"{len(r.seeds)} of {len(r.group.cells)}", _each_seed(r)])
    head = ["setting", "nats per token", "perplexity", *(["bits per byte"] if any(bits) else [])]
    head += [GAP_CLOSED] if gaps[0] is not None else []
    best = (
        frozenset({comparison.best})
        if len(comparison.ties) == 1 < len(comparison.readings)
        else frozenset()
    )
    head += ["tokens of training"] if unequal else []
    head += ["seeds", "perplexity of each seed"]
    yield Table(name=name, head=head, rows=rows, marked=best)
    if len(comparison.ties) > 1:
        yield Paragraph(TIES)
    if unequal:
        yield Paragraph(
            f"Settings were trained on different numbers of tokens, {min(known):,.0f} to "
            f"{max(known):,.0f}: a part of a difference may come of that."
        )
    gap = comparison.readings[0].gap()
    if gap is not None and gaps[0] is None:
        yield Paragraph(
            "The best losses possible with and without memory are the same on these documents "
            f"({gap:.1e} nats per token apart): memory can tell nothing here, because hardly any "
            "document is longer than a segment. There is no gap to close."
        )
    if gaps[0] is not None:
        yield Paragraph(
            "The gap lies between the best losses possible without memory (0 %) and with all of "
            "the document in memory (100 %); below 0 % a model is worse than that best one without."
        )


def _differences(comparison: CorpusComparison, name: str) -> Iterator[Block]:
    rows: list[list[str | Measured]] = []
    for i, r in enumerate(comparison.readings):
        if i == comparison.reference:
            continue
        paired = comparison.against_reference.get(i)
        if paired is None:
            rows.append([r.group.label, "-", "-", "-", "0", "no common seed"])
            continue
        e = paired.estimate
        verdict = ("better" if e.mean < 0 else "worse") if paired.claimed else "not claimed"
        row = [r.group.label, _measured(e, "+.4f"), _perplexity(e, ".4f")]
        rows.append([*row, p_words(paired.p), str(paired.seeds), verdict])
    yield Heading(f"Difference from {comparison.labels[comparison.reference]}", 3)
    head = ["setting", "nats per token", "perplexity ratio", "p (Holm)", "seeds", "verdict"]
    yield Table(name=name, head=head, rows=rows)


def _controls(comparison: CorpusComparison, name: str) -> Iterator[Block]:
    """Show what the same weights lose without their memory, and with another document's."""
    shown = [r for r in comparison.readings if r.controls]
    if not shown:
        return
    known = shown[0].gap_closed() is not None
    rows: list[list[str | Measured]] = []
    for r in shown:
        row: list[str | Measured] = [r.group.label]
        for control in CONTROLS:
            estimates = [(r.without_own(control), "+.4f")]
            estimates += [(r.gap_closed(control), ".1%")] if known else []
            row += ["-" if e is None else _measured(e, form) for e, form in estimates]
        rows.append(row)
    yield Heading("The same weights without their memory", 3)
    head = ["setting"]
    for words in CONTROLS.values():
        head += [f"{words} minus own"] + ([f"{words}: share of the gap"] if known else [])
    yield Table(name=name, head=head, rows=rows)
    yield Paragraph(
        "Loss differences in nats per token, for the same weights. Memory off minus own is the "
        "benefit of memory; another document's minus own shows whether the benefit comes from "
        "this document's memory."
    )


def _costs(comparison: CorpusComparison, name: str) -> Iterator[Block]:
    head = ["setting", "evaluation, s per 1000 tokens", "training, s", "peak memory, MiB"]
    head += ["memory state, bytes per row", "parameters", "tokens seen"]
    rows = [
        [
            r.group.label,
            f"{evaluation:#.4g}",
            f"{training:.1f}",
            f"{(r.recorded('peak_memory_bytes') or 0) / 2**20:.0f}",
            *(
                f"{r.recorded(key) or 0:,.0f}"
                for key in ("state_bytes_per_row", "parameters", "tokens_seen")
            ),
        ]
        for r, evaluation, training in zip(
            comparison.readings, evaluation_cost(comparison), training_cost(comparison), strict=True
        )
    ]
    yield Heading("Cost", 3)
    yield Table(name=name, head=head, rows=rows)
    yield Paragraph(
        "Medians over seeds, on the machine named below, under whatever other load it had."
    )


def _provenance(study: StudyRecord) -> Iterator[list[str]]:
    """Return what the cells ran on; what differs between them is listed each time."""
    found: dict[str, dict[str, int]] = {}
    for cell in study.cells:
        if (result := cell.result) is None:
            continue
        facts = {"versions": result["versions"], "machine": result["machine"]}
        lines = {key: ", ".join(f"{k} {v}" for k, v in fact.items()) for key, fact in facts.items()}
        lines |= {
            "commit": result["commit"] or "not from a checkout",
            "precision": result["precision"],
            "protocol": result["evaluation"]["protocol"],
            "corpus": result["corpus"]["digest"],
        }
        for key, line in lines.items():
            counts = found.setdefault(key, {})
            counts[line] = counts.get(line, 0) + 1
    for key, counts in found.items():
        yield from ([key, line, str(n)] for line, n in counts.items())


def _settings(study: StudyRecord, comparisons: Sequence[CorpusComparison]) -> Iterator[Block]:
    overrides = [cell.overrides for cell in study.cells]
    varied = differing(overrides)
    common = [f"{key}={value}" for key, value in overrides[0].items() if key not in varied]
    yield Paragraph("All cells were given:" if common else "No override is common to all cells.")
    if common:
        yield Code("\n".join(common))
    # Several corpora have the same settings, but for what says which corpus it is.
    rows = {
        (group.label, " ".join(f"{key}={given[key]}" for key in own if key in given)): None
        for comparison in comparisons
        if (own := [k for k in varied if k in differing([g.overrides for g in comparison.groups])])
        for group in comparison.groups
        if (given := group.overrides)
    }
    if rows:
        head = ["setting", "what sets it apart (the seed aside)"]
        yield Table(name="settings", head=head, rows=[list(row) for row in rows], prose=True)


def _measured(estimate: Estimate, form: str) -> Measured:
    return Measured(estimate.mean, estimate.low, estimate.high, form)


def _perplexity(estimate: Estimate, form: str) -> Measured:
    mean, low, high = perplexity([estimate.mean, estimate.low, estimate.high]).tolist()
    return Measured(mean, low, high, form)


def _each_seed(readings: Readings) -> str:
    return ", ".join(written(x, ".3f") for x in perplexity(readings.own.mean(1, dtype=float)))
