"""The report of a study: what was measured, how sure it is, and how to measure it again."""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unimem.evaluation.statistics import few_documents
from unimem.evaluation.tokens import TokenTable
from unimem.integrity import require_whole
from unimem.results.claims.page import Decision, claim_blocks, decide
from unimem.results.claims.statements import read_report
from unimem.results.comparison import SEEDS, CorpusComparison, comparisons
from unimem.results.escape import as_file_name
from unimem.results.figures import colours_of_report, draw_readings, draw_settings
from unimem.results.render.blocks import (
    Block,
    Code,
    Contents,
    Download,
    Heading,
    Measured,
    Paragraph,
    Picture,
    Table,
)
from unimem.results.render.page import as_html, as_markdown
from unimem.results.study import CellRecord, StudyRecord
from unimem.results.tables import LOSSES, panel_tables, study_tables
from unimem.runs.files import write_bytes_atomic, write_json_atomic
from unimem.runs.layout import METRICS
from unimem.words import counted, duration

PAGE, TEXT, VERDICTS = "report.html", "report.md", "verdicts.json"

METHOD = (
    "Losses are means over tokens. Intervals are at 95 %, over seeds and documents: Student's t "
    "over the means of the seeds and a bootstrap over documents, combined. Differences are paired: "
    "the same tokens, the same seeds; p is over seeds and documents too, and corrected for the "
    "number of rows (Holm). A difference is claimed, and the lowest loss marked, only with "
    f"p < 0.05 and {SEEDS} seeds or more on both sides; '≈' marks the settings that are not "
    "significantly different from the lowest. The interval and p of a single seed are over "
    "documents alone: they say nothing of what other seeds would give. Two seeds give wide "
    "intervals, and no claim."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report that was written to `folder`."""

    study: StudyRecord
    folder: Path
    blocks: tuple[Block, ...]
    comparisons: tuple[CorpusComparison, ...]
    decisions: tuple[Decision, ...]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE

    @property
    def tables(self) -> list[Table]:
        """Its tables."""
        return [block for block in self.blocks if isinstance(block, Table)]

    @property
    def losses(self) -> list[Table]:
        """The table of losses of each panel."""
        return [table for table in self.tables if table.name.endswith(LOSSES)]

    @property
    def pictures(self) -> list[Picture]:
        """Its figures."""
        return [block for block in self.blocks if isinstance(block, Picture)]

    def verdict_table(self) -> Table:
        """Return the verdicts as a table; on the page they are text."""
        head = ["statement", "corpus", "verdict", "reason"]
        rows = [
            [d.check.sentence, d.corpus or "-", d.judgement.verdict, d.judgement.reason]
            for d in self.decisions
        ]
        return Table(name="verdicts", head=head, rows=rows, prose=True)

    def headline(self) -> dict[str, Any]:
        """Return the verdicts, and the mean loss of every setting, by name."""
        numbers: dict[str, Any] = {
            f"verdict/{decision.corpus}/{decision.check.sentence}": decision.judgement.verdict
            for decision in self.decisions
        }
        for comparison in self.comparisons:
            for label, level in zip(comparison.labels, comparison.levels, strict=True):
                numbers[f"nll/{comparison.name}/{label}"] = level.mean
        return numbers


def write_study_report(study: StudyRecord, folder: Path) -> Report:
    """Write the page, also as Markdown, figures, tables as CSV and verdicts to a study's folder.

    Raises ValueError if no cell is finished, or for what `report` in the study file cannot say.
    """
    study = replace(study, cells=tuple(map(_checked, study.cells)))
    groups = study.groups()
    if not any(group.finished for group in groups):
        raise ValueError(f"no cell of {study.name} is finished; run it: {study.command}")
    reference, checks = read_report(study.fields.get("report"))
    found = comparisons(groups, reference)
    decisions = decide(checks, found)
    blocks = _blocks(study, found, decisions, folder)
    report = Report(
        study=study,
        folder=folder,
        blocks=tuple(blocks),
        comparisons=tuple(found),
        decisions=tuple(decisions),
    )
    _write(report, folder, lambda text: text)
    return report


def copy_report(report: Report, folder: Path) -> Path:
    """Write a report to another folder, for others to read: without this machine's paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        shutil.copyfile(picture.path, folder / picture.path.name)
    _write(report, folder, without_paths)
    return folder / PAGE


def without_paths(text: str) -> str:
    """Leave of every absolute path its last part alone."""
    return re.sub(r"(?<![^\s\"'`=(\[;,])/(?:[^\s/\"'`<>&;,()\[\]]+/)+", "", text)


def _write(report: Report, folder: Path, cleaned: Callable[[str], str]) -> None:
    verdicts = {
        "study": report.study.name,
        "profile": report.study.fields.get("profile"),
        "verdicts": [decision.record() for decision in report.decisions],
    }
    write_json_atomic(folder / VERDICTS, verdicts)
    # Encoded in the page, the text of a CSV file could not be cleaned any more.
    blocks = [_cleaned(block, cleaned) for block in report.blocks]
    for block in blocks:
        if isinstance(block, Download):
            write_bytes_atomic(folder / block.file, block.csv().encode())
    text = as_markdown(blocks)
    page = as_html(f"Study {report.study.name}", blocks)
    write_bytes_atomic(folder / TEXT, cleaned(text).encode())
    write_bytes_atomic(folder / PAGE, cleaned(page).encode())


def _cleaned(block: Block, cleaned: Callable[[str], str]) -> Block:
    if not isinstance(block, Download):
        return block
    rows = [
        [cell if isinstance(cell, Measured) else cleaned(cell) for cell in row]
        for row in block.table.rows
    ]
    return Download(replace(block.table, rows=rows))


def _blocks(
    study: StudyRecord,
    found: Sequence[CorpusComparison],
    decisions: Sequence[Decision],
    folder: Path,
) -> list[Block]:
    top: list[Block] = [Heading(f"Study {study.name}", 1)]
    rest: list[Block] = [*_unfinished(study), Heading("How to read the tables"), Paragraph(METHOD)]
    colours = colours_of_report(found)
    for comparison, prefix in zip(found, _prefixes(found), strict=True):
        level = comparison.levels[0]
        read = f"Evaluated: {counted(level.documents, 'document')}, {level.tokens:,} tokens scored."
        few = few_documents(level.documents)
        read += f" {few}" if few else ""
        rest += [
            Heading(f"Results on {comparison.name}"),
            Paragraph(f"{comparison.corpus}. {read}"),
        ]
        figures = [*draw_settings(comparison, folder, prefix, colours)]
        readings = [*draw_readings(comparison, folder, prefix, colours)]
        first, *figures = figures or readings[:1] or [None]
        # What the headline says is seen at once, below it.
        top += [_headline(comparison), *([] if first is None else [first])]
        rest += [*figures, *panel_tables(comparison, prefix)]
        rest += [block for block in readings if block is not first]
    rest += study_tables(study, found)
    top += claim_blocks(study, found, decisions)
    headings = [block for block in rest if isinstance(block, Heading) and block.level == 2]
    top += [Heading("Command"), Code(study.command), Paragraph(_when(study)), Contents(headings)]
    return [*_with_downloads([*top, *rest])]


def _when(study: StudyRecord) -> str:
    """Return how many cells are finished, when they ended, and how long they took."""
    results = [cell.result for cell in study.cells if cell.result is not None]
    done = f"{len(results)} of {counted(len(study.cells), 'cell')} finished"
    ends = sorted(end[:10] for result in results if (end := result.get("finished_at")))
    if ends:
        done += f", {ends[0]}" if ends[0] == ends[-1] else f", from {ends[0]} to {ends[-1]}"
        done += " (UTC)"
    unknown = len(results) - len(ends)
    done += f", {unknown} of them without a recorded date" if unknown else ""
    training = sum(result["training_seconds"] for result in results)
    # The seconds of a resumed run are those of its last process.
    seconds = sum(max(result.get("seconds", 0.0), result["training_seconds"]) for result in results)
    return (
        f"{done}. Run time, summed over cells: {duration(seconds)}, of which training "
        f"{duration(training)}; of a resumed run, only training counts before the interruption."
    )


def _with_downloads(blocks: Sequence[Block]) -> Iterator[Block]:
    """Put a link to its CSV file after each table."""
    for block in blocks:
        yield block
        if isinstance(block, Table):
            yield Download(block)


def _headline(comparison: CorpusComparison) -> Paragraph:
    """Return in a sentence which setting has the lowest loss, and by how much."""
    best, reference = comparison.best, comparison.labels[comparison.reference]
    text = f"On {comparison.name}, {comparison.labels[best]} has the lowest loss"
    if best in comparison.against_reference:
        paired = comparison.against_reference[best]
        e = paired.estimate
        text += f", {e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}] nats per token vs. {reference}"
        text += "" if paired.claimed else " (not claimed)"
    if len(comparison.ties) > 1:
        text += (
            f"; no significant difference to {counted(len(comparison.ties) - 1, 'other setting')}"
        )
    gap = comparison.readings[best].gap_closed()
    text += "" if gap is None else f"; share of the gap closed {gap.mean:.0%}"
    return Paragraph(f"{text}.")


def left_out(study: StudyRecord) -> list[str]:
    """Name the cells whose records cannot be read, and the files."""
    return [f"{cell.label}: left out: {cell.damage}" for cell in study.cells if cell.damage]


def _checked(cell: CellRecord) -> CellRecord:
    """Take a cell for one without a result if its losses cannot be read."""
    if cell.result is not None:
        try:
            TokenTable.load(cell.folder)
            require_whole(cell.folder / METRICS)
        except ValueError as error:
            return replace(cell, run=None, damage=str(error))
    return cell


def _unfinished(study: StudyRecord) -> Iterator[Block]:
    if study.unfinished:
        yield Heading("Failed and missing cells")
        yield Paragraph("They are in no table and no figure; the command above goes on with them.")
    for cell in study.unfinished:
        state, *log = cell.last_log_lines()
        yield Paragraph(f"{cell.label}: {state} ({cell.folder.name})")
        if log:
            yield Code("\n".join(log))


def _prefixes(found: Sequence[CorpusComparison]) -> list[str]:
    """Return what the names of each panel's files begin with; no two have the same."""
    if len(found) == 1:
        return [""]
    names = [as_file_name(comparison.name) for comparison in found]
    alike = len(set(names)) < len(names)
    return [f"{name}-{i}_" if alike else f"{name}_" for i, name in enumerate(names, 1)]
