"""The state of a cell, read from its folder: finished or not, its progress, its lock."""

import fcntl
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unimem.evaluation.tokens import FILE_NAME
from unimem.integrity import require_whole
from unimem.runs.files import write_json_atomic
from unimem.runs.folder import make_folder
from unimem.runs.layout import CONFIG, METRICS, RESULT, STUDY
from unimem.runs.records import read_result
from unimem.studies.cells import Cell
from unimem.studies.study import Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The last line of a run's metrics."""

    step: int
    perplexity: float | None
    seconds: float


def finished(cell: Cell) -> bool:
    """Whether the cell came to its end, with the settings, code and data that it has now."""
    if not (cell.folder / RESULT).is_file():
        return False
    try:
        result = read_result(cell.folder)
        for name in (FILE_NAME, METRICS):  # weights may be large: whoever reads them compares
            require_whole(cell.folder / name)
    except ValueError as error:
        logger.warning("%s; the cell counts as not finished", error)
        return False
    return result.get("signature") == cell.signature


def begun(cell: Cell) -> bool:
    """Whether there is something to continue."""
    return (cell.folder / CONFIG).is_file()


def perplexity(cell: Cell) -> float | None:
    """Return the perplexity of a finished cell, with its own memory; None if it has diverged."""
    return read_result(cell.folder)["evaluation"]["scores"]["own"]["perplexity"]


def progress(cell: Cell) -> Progress | None:
    """Read how far training is; None before the first line of metrics."""
    for line in reversed(_tail(cell.folder / METRICS)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut at the tail's beginning, being written, or damaged
        if not isinstance(record, dict) or not {"step", "perplexity", "seconds"} <= record.keys():
            continue  # of validation, or damaged
        return Progress(**{key: record[key] for key in ("step", "perplexity", "seconds")})
    return None


def log_file(cell: Cell) -> Path:
    """Return the file that holds all that the cell's processes said."""
    return cell.folder.with_name(f"{cell.folder.name}.log")


def last_lines(cell: Cell, count: int = 5) -> list[str]:
    """Return the end of the cell's log."""
    return _tail(log_file(cell))[-count:]


def take_lock(cell: Cell) -> IO[str] | None:
    """Take the cell's lock; None if a process of this sweep or another has it.

    It is free again once the file is closed, in this process and in those that inherited it.
    """
    folder = cell.folder.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / cell.signature).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def write_study(study: Study) -> Path:
    """Record which cells a study consists of, and what its file says; return the path."""
    output = Path(study.options.output)
    path = output / study.options.study / STUDY
    make_folder(path.parent, study.options.output)
    record = {
        "study": study.options.study,
        "arguments": list(study.arguments),
        "bases": [_entry(base, output) for base in study.bases],
        "cells": [_entry(cell, output) for cell in study.cells],
        **study.fields,
    }
    write_json_atomic(path, record)
    return path


def _entry(cell: Cell, output: Path) -> dict[str, object]:
    return {
        "label": cell.label,
        "overrides": list(cell.overrides.lines),
        "signature": cell.signature,
        "base": None if cell.base is None else cell.base.signature,
        # A base may lie anywhere.
        "folder": Path(os.path.relpath(cell.folder, output)).as_posix(),
    }


def _tail(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        return file.read().decode(errors="replace").splitlines()
