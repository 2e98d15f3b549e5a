"""unimem-results: list, filter and export what finished runs found out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unimem.results.collect import COLUMNS, collect, require_columns, sort, where
from unimem.results.records import write_bytes_atomic
from unimem.results.tables import FORMATS, write_parquet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unimem-results` with the arguments of the command line."""
    try:
        run(_parser().parse_args(arguments))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


def run(given: argparse.Namespace) -> None:
    """Collect, filter, sort, and print or write. Raises ValueError for what cannot be shown."""
    if given.format == "parquet" and given.out is None:
        raise ValueError("--format parquet needs --out FILE")
    rows = collect(Path(given.folder), unfinished=given.all)
    if not rows:
        kind = "run" if given.all else "finished run; --all lists the others too"
        raise ValueError(f"{given.folder} holds no {kind}")
    columns: list[str] = [*COLUMNS] if given.columns is None else given.columns.split(",")
    if given.all and given.columns is None:
        columns.insert(1, "status")
    require_columns(rows, columns)
    rows = where(rows, given.where)
    if given.sort is not None:
        rows = sort(rows, given.sort)
    if given.format == "parquet":
        write_parquet(rows, columns, Path(given.out))
        return
    text = FORMATS[given.format](rows, columns)
    if given.out is None:
        print(text)
    else:
        write_bytes_atomic(Path(given.out), f"{text}\n".encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unimem-results",
        description="List the finished runs under a folder: one row each.",
        epilog="Example: unimem-results --where memory.reading=similarity --sort nll --format md",
    )
    parser.add_argument("folder", nargs="?", default="outputs", help="default: outputs")
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep the runs with this value; any setting is a column",
    )
    parser.add_argument("--columns", metavar="A,B", help=f"default: {','.join(COLUMNS)}")
    parser.add_argument("--sort", metavar="COLUMN", help="smallest first")
    parser.add_argument("--format", choices=[*FORMATS, "parquet"], default="table")
    parser.add_argument("--out", metavar="FILE", help="write there instead of printing")
    parser.add_argument("--all", action="store_true", help="unfinished runs too, named as such")
    return parser


if __name__ == "__main__":
    main()
