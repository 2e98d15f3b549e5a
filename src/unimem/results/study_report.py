"""The report of a study: what was measured, how sure it is, and how to measure it again."""

import math
from collections.abc import Iterator
from pathlib import Path

import yaml

from unimem.results.comparison import SEEDS, Panel, panels
from unimem.results.page import (
    Block,
    Code,
    Heading,
    Paragraph,
    Table,
    as_html,
    as_markdown,
)
from unimem.results.readings import Readings
from unimem.results.records import write_bytes_atomic
from unimem.results.study import StudyRecord, read_study
from unimem.results.study_figures import draw_figures, evaluation_cost, training_cost
from unimem.results.tables import short

METHOD = (
    "Losses are means over tokens; intervals are 95 % two-level bootstrap intervals, over seeds "
    "and documents. Differences are paired: the same tokens, the same seeds; p is corrected for "
    "the number of rows (Holm). A difference is claimed, and the lowest loss marked, only with "
    f"p < 0.05 and {SEEDS} seeds or more on both sides; '≈' marks the settings that cannot be "
    "told from the lowest. Over few seeds a bootstrap interval is rather too narrow."
)


def write_study_report(output: Path, name: str) -> Path:
    """Write `report.md`, `report.html` and their figures beside `study.json`; give the page's path.

    Raises ValueError if there is no such study, or none of its cells is finished.
    """
    study = read_study(output, name)
    groups = study.groups()
    if not any(group.finished for group in groups):
        raise ValueError(f"no cell of {name} is finished; run it: {study.command}")
    reference = (study.fields.get("report") or {}).get("reference")
    folder = output / name
    blocks: list[Block] = [Heading(f"Study {study.name}", 1), *_claim(study)]
    blocks += [Heading("Command"), Code(study.command), *_unfinished(study)]
    blocks += [Heading("How to read the tables"), Paragraph(METHOD)]
    found = panels(groups, reference)
    for i, panel in enumerate(found):
        prefix = f"panel{i + 1}_" if len(found) > 1 else ""
        blocks += [Heading(panel.corpus.split(":")[0]), Paragraph(_read(panel))]
        blocks += [*_levels(panel), *_differences(panel), *_costs(panel)]
        blocks += draw_figures(panel, folder, prefix)
    blocks += _provenance(study)
    write_bytes_atomic(folder / "report.md", as_markdown(blocks).encode())
    path = folder / "report.html"
    write_bytes_atomic(path, as_html(f"Study {study.name}", blocks).encode())
    return path


def _claim(study: StudyRecord) -> Iterator[Block]:
    for field, title in (("claim", "The published claim"), ("published", "Published numbers")):
        said = study.fields.get(field)
        if said is not None:
            yield Heading(title)
            text = yaml.safe_dump(said, allow_unicode=True, sort_keys=False).strip()
            yield Paragraph(said) if isinstance(said, str) else Code(text)


def _unfinished(study: StudyRecord) -> Iterator[Block]:
    missing = study.unfinished
    yield Paragraph(f"{len(study.cells) - len(missing)} of {len(study.cells)} cells are finished.")
    if missing:
        yield Heading("Failed and missing cells")
        yield Paragraph("They are in no table and no figure; the command above goes on with them.")
    for cell in missing:
        state, *log = cell.trouble()
        yield Paragraph(f"{cell.label}: {state} ({cell.folder.name})")
        if log:
            yield Code("\n".join(log))


def _read(panel: Panel) -> str:
    level = panel.levels[0]
    return f"{panel.corpus}. Read: {level.documents} documents, {level.tokens} tokens scored."


def _levels(panel: Panel) -> Iterator[Block]:
    rows: list[list[str]] = []
    bits = [r.recorded("evaluation", "scores", "own", "bits_per_byte") for r in panel.readings]
    gaps = [r.gap_closed() for r in panel.readings]
    for i, (r, level, gap) in enumerate(zip(panel.readings, panel.levels, gaps, strict=True)):
        mark = " ≈" if i in panel.ties and len(panel.ties) > 1 else ""
        perplexity = (math.exp(x) for x in (level.mean, level.low, level.high))
        row = [f"{r.group.label}{mark}", f"{len(r.seeds)} of {len(r.group.cells)}"]
        row += [f"{level.mean:.4f}", _interval(level.low, level.high, ".4f")]
        mean, low, high = perplexity
        row += [f"{mean:.3f}", _interval(low, high, ".3f"), _each_seed(r)]
        row += [short(bits[i])] if any(bits) else []
        if gap is not None:
            row += [f"{gap.mean:.1%}", _interval(gap.low, gap.high, ".1%")]
        rows.append(row)
    head = ["setting", "seeds", "nats per token", "95 % interval", "perplexity", "95 % interval"]
    head += ["perplexity of each seed", *(["bits per byte"] if any(bits) else [])]
    if gaps[0] is not None:
        head += ["share of the gap closed", "95 % interval"]
    best = frozenset({panel.best}) if len(panel.ties) == 1 < len(panel.readings) else frozenset()
    yield Table(head, rows, best)
    if gaps[0] is not None:
        yield Paragraph(
            "The gap lies between the best losses possible without memory (0 %) and with all of "
            "the document in memory (100 %); below 0 % a model is worse than that best one without."
        )


def _differences(panel: Panel) -> Iterator[Block]:
    reference = panel.readings[panel.reference]
    if len(panel.readings) == 1:
        return
    rows: list[list[str]] = []
    for i, r in enumerate(panel.readings):
        if i == panel.reference:
            continue
        paired = panel.against_reference.get(i)
        if paired is None:
            rows.append([r.group.label, "0", *["-"] * 5, "no common seed"])
            continue
        e = paired.estimate
        mean, low, high = (math.exp(x) for x in (e.mean, e.low, e.high))
        verdict = ("better" if e.mean < 0 else "worse") if paired.claimed else "not claimed"
        row = [r.group.label, str(paired.seeds), f"{e.mean:+.4f}", _interval(e.low, e.high, "+.4f")]
        row += [f"{mean:.4f}", _interval(low, high, ".4f"), f"{paired.p:.2g}", verdict]
        rows.append(row)
    yield Heading(f"Difference from {reference.group.label}", 3)
    head = ["setting", "seeds", "nats per token", "95 % interval", "perplexity ratio"]
    yield Table([*head, "95 % interval", "p (Holm)", "verdict"], rows)


def _costs(panel: Panel) -> Iterator[Block]:
    head = ["setting", "evaluation, s per 1000 tokens", "training, s", "peak memory, MiB"]
    head += ["memory state, bytes per row", "parameters", "tokens seen"]
    rows = [
        [
            r.group.label,
            f"{evaluation:.4g}",
            f"{training:.1f}",
            f"{(r.recorded('peak_memory_bytes') or 0) / 2**20:.0f}",
            *(
                f"{r.recorded(key) or 0:,.0f}"
                for key in ("state_bytes_per_row", "parameters", "tokens_seen")
            ),
        ]
        for r, evaluation, training in zip(
            panel.readings, evaluation_cost(panel), training_cost(panel), strict=True
        )
    ]
    yield Heading("Cost", 3)
    yield Table(head, rows)
    yield Paragraph("Medians of the seeds, on the machine below and with whatever else it did.")


def _provenance(study: StudyRecord) -> Iterator[Block]:
    """Tell what the cells ran on; what differs between them is listed each time."""
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
    yield Heading("Where the numbers come from")
    yield Table(
        ["", "value", "cells"],
        [[key, line, str(n)] for key, counts in found.items() for line, n in counts.items()],
    )
    yield Heading("Cells", 3)
    cells = [[cell.label, cell.folder.name] for cell in study.cells]
    base = study.fields.get("base")
    if base is not None:
        cells.insert(0, ["the base run, whose weights all start from", Path(base["folder"]).name])
    yield Table(["cell", "folder, which ends in its signature"], cells)


def _each_seed(readings: Readings) -> str:
    return ", ".join(f"{math.exp(nll):.3f}" for nll in readings.own.mean(1, dtype=float))


def _interval(low: float, high: float, form: str) -> str:
    return "one document" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"
