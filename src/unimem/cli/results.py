"""unimem-results: list, filter and export what finished runs and evaluations found out."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from unimem.cli import leave, say
from unimem.results.collect import (
    COLUMNS,
    SHOWN,
    Row,
    all_columns,
    collect,
    known_columns,
    sort,
    where,
)
from unimem.results.frame_tables import FORMATS, as_text, shown_value, write_parquet
from unimem.runs.files import write_bytes_atomic
from unimem.words import counted

FIRST = 3
"""Values of a column that are told where none of them was asked for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unimem-results` with the arguments of the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run(_parser().parse_args(_with_minus(given)))
    except (ValueError, OSError) as error:
        leave(error)


def run(given: argparse.Namespace) -> None:
    """Collect, filter, sort, and print or write. Raises ValueError for what cannot be shown."""
    if given.format == "parquet" and given.out is None:
        raise ValueError("--format parquet needs --out FILE")
    if given.out is not None and not Path(given.out).absolute().parent.is_dir():
        parent = Path(given.out).parent
        raise ValueError(f"--out {given.out}: {parent} is not a folder; make it first")
    found = collect(Path(given.folder), unfinished=given.all)
    _tell_damaged(found.damaged)
    if not found.rows:
        kind = "run" if given.all else "finished run; --all lists the others too"
        raise ValueError(f"{given.folder} holds no {kind}")
    if given.list_columns:
        say("\n".join(all_columns(found.rows)))
        return
    rows = where(found.rows, given.where)
    if given.sort is not None:
        rows = sort(rows, given.sort, descending=given.descending)
    if not rows:
        _tell_nothing(found.rows, given.where)
    text = given.out is None and given.format == "table"
    columns = _columns(given, found.rows, rows, text)
    if given.format == "parquet" and given.out is not None:
        write_parquet(rows, columns, Path(given.out))
    elif given.out is not None:
        content = FORMATS[given.format](rows, columns)
        write_bytes_atomic(Path(given.out), f"{content}\n".encode())
    elif rows or not text:
        say(FORMATS[given.format](rows, columns))


def _columns(
    given: argparse.Namespace, everything: Sequence[Row], rows: Sequence[Row], text: bool
) -> list[str]:
    """Return the columns asked for; on a terminal as many of the usual ones as it is wide."""
    if given.columns == "all":
        return all_columns(everything)
    if given.columns is not None:
        return known_columns(everything, given.columns.split(","))
    columns = [*(SHOWN if text else COLUMNS)]
    if given.all:
        columns.insert(1, "status")
    if text and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        kept = list(columns)
        while len(kept) > 1 and len(as_text(rows, kept).partition("\n")[0]) > width:
            kept.pop(_least(kept))
        if left := [column for column in columns if column not in kept]:
            notice = f"{', '.join(left)}: left out, the terminal has {counted(width, 'column')}"
            say(f"{notice}; --columns names any", file=sys.stderr)
        columns = kept
    return columns


def _least(columns: Sequence[str]) -> int:
    """Return the place of the column that is missed least."""
    order = ("peak_memory_bytes", "seconds", "study", "tokens_seen", "model", "seed", "perplexity")
    known = [columns.index(column) for column in order if column in columns]
    return known[0] if known else len(columns) - 1


def _tell_damaged(damaged: Sequence[str]) -> None:
    if not damaged:
        return
    say(f"{counted(len(damaged), 'record')} left out:", file=sys.stderr)
    for line in damaged:
        say(f"  {line}", file=sys.stderr)


def _tell_nothing(rows: Sequence[Row], conditions: Sequence[str]) -> None:
    """Print that no row is left, and the values of the columns that were asked for."""
    say(f"none of {counted(len(rows), 'run')}: {' '.join(conditions)}", file=sys.stderr)
    for condition in conditions:
        if where(rows, [condition]):
            continue
        (column,) = known_columns(rows, [condition.split("=")[0].strip(" <>!")])
        values = list(dict.fromkeys(shown_value(column, row.get(column)) for row in rows))
        more = f" and {len(values) - FIRST} more" if len(values) > FIRST else ""
        say(f"  {column} is {', '.join(values[:FIRST])}{more}", file=sys.stderr)


def _with_minus(arguments: Sequence[str]) -> list[str]:
    """Let the value of --sort begin with a minus, which is no option then."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--sort":
            joined[-1] = f"--sort={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unimem-results",
        description="List the finished runs and evaluations under a folder: one row each.",
        epilog="Example: unimem-results --where data=markov 'nll<2' --sort -nll --format md",
    )
    parser.add_argument("folder", nargs="?", default="outputs", help="default: outputs")
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONDITION",
        help="keep the rows with column=value, column=a,b, column!=value, 'column<number' or "
        "'column>=number'; any setting is a column",
    )
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help=f"or all; default on a terminal: {','.join(SHOWN)}; else: {','.join(COLUMNS)}",
    )
    parser.add_argument("--list-columns", action="store_true", help="name all columns that exist")
    parser.add_argument("--sort", metavar="COLUMN", help="smallest first; -COLUMN: largest first")
    parser.add_argument("--descending", action="store_true", help="with --sort: largest first")
    parser.add_argument("--format", choices=[*FORMATS, "parquet"], default="table")
    parser.add_argument("--out", metavar="FILE", help="write there instead of printing")
    parser.add_argument("--all", action="store_true", help="unfinished runs too, named as such")
    return parser


if __name__ == "__main__":
    main()
