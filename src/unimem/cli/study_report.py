"""unimem-report: a study's tables and figures as one page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unimem.cli import leave, say
from unimem.results.render.blocks import Measured
from unimem.results.report import Report, copy_report, left_out, write_study_report
from unimem.results.study import StudyRecord, read_study
from unimem.results.tables import GAP_CLOSED, TIES
from unimem.runs.layout import RESULT, STUDY
from unimem.settings import LoggerSettings

MODES = ("auto", "online", "offline", "disabled")
SHOWN = ("setting", "nats per token", "perplexity", GAP_CLOSED)
"""Columns of a report's losses that fit a terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unimem-report` with the arguments of the command line."""
    try:
        run(_parser().parse_args(arguments))
    except (ValueError, OSError) as error:
        leave(error)


def run(given: argparse.Namespace) -> None:
    """Write the report, mirror it, and say where it is. Raises ValueError if there is none."""
    output, name = _place(given.study, given.output)
    study = read_study(output, name)
    try:
        report = write_study_report(study, output / name)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        cells = ", ".join(str(cell.folder) for cell in study.cells if cell.result is not None)
        raise ValueError(
            f"a record of this study is damaged or of another version ({error!r}); it is the "
            f"{RESULT} of one of {cells}: run that cell again"
        ) from error
    for line in left_out(report.study):
        say(line, file=sys.stderr)
    say("\n".join(summary(report)))
    say(report.page)
    if given.copy_to is not None:
        say(copy_report(report, Path(given.copy_to)))
    settings = logger_settings(study, given.wandb)
    if settings.mode != "disabled":
        from unimem.results.publish import publish

        if command := publish(report, settings):
            say(f"W&B: to send it: {command}")


def _place(study: str, output: str) -> tuple[Path, str]:
    """Return the output folder and the name of a study that is told by its name or as a path."""
    path = Path(study)
    if path.name == STUDY:
        path = path.parent
    if not (Path(output) / study / STUDY).is_file() and (path / STUDY).is_file():
        path = path.resolve()
        return path.parent, path.name
    return Path(output), study


def summary(report: Report) -> list[str]:
    """Put the losses of every corpus and the verdicts into lines of text."""
    lines: list[str] = []
    for comparison, table in zip(report.comparisons, report.losses, strict=True):
        shown = [i for i, name in enumerate(table.head) if name in SHOWN]
        rows = [[_cell(table.head[i], row[i]) for i in shown] for row in (table.head, *table.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [f"{report.study.name} on {comparison.name}, 95 % intervals"]
        for i, row in enumerate(rows):
            best = "  lowest" if i - 1 in table.marked else ""
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(("  ".join(cells) + best).rstrip())
        lines += [*([TIES] if len(comparison.ties) > 1 else []), ""]
    for decision in report.decisions:
        where = f" ({decision.corpus})" if decision.corpus else ""
        lines.append(f"{decision.judgement.verdict:<12} {decision.check.sentence}{where}")
    return lines


def _cell(column: str, value: str | Measured) -> str:
    """Write a cell of the losses; how far a model is beyond the bound tells nobody anything."""
    if column == GAP_CLOSED and isinstance(value, Measured) and value.mean < 0:
        return "none: worse than the bound without memory"
    return str(value)


def logger_settings(study: StudyRecord, mode: str | None) -> LoggerSettings:
    """Return the W&B settings that the study's runs had, in the mode that is asked for.

    Without one it is `auto`, or `disabled` if no run was mirrored.
    """
    runs = [cell.run for cell in study.cells if cell.run is not None]
    known = [LoggerSettings.model_validate(run.config["logger"]) for run in runs]
    used = [settings for settings in known if settings.mode != "disabled"]
    chosen = mode or ("auto" if used else "disabled")
    return (used or known)[0].model_copy(update={"mode": chosen})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unimem-report",
        description="Write report.html, report.md, verdicts.json, figures and a CSV file of each "
        "table beside the study.json of a study.",
        epilog="Example: unimem-report injection_layer",
    )
    parser.add_argument(
        "study", metavar="STUDY", help="its name, as in outputs/STUDY/study.json, or that folder"
    )
    parser.add_argument("--output", default="outputs", metavar="FOLDER", help="default: outputs")
    parser.add_argument(
        "--copy-to",
        metavar="FOLDER",
        help="write it there too, for others: without paths of this machine",
    )
    parser.add_argument(
        "--wandb",
        choices=MODES,
        metavar="MODE",
        help=f"{', '.join(MODES)}; auto is WANDB_MODE, else online if a key exists, else offline; "
        "default: auto, or disabled if no run of the study was mirrored",
    )
    return parser


if __name__ == "__main__":
    main()
