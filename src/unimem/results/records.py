"""The files of a run's folder that others read: written whole or not at all."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

RESULT = "result.json"
"""What a finished run found out; it exists if and only if the run came to its end."""


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that whoever opens `path`, whenever, finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make what was renamed in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all; NaN and infinity are errors."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_bytes_atomic(path, f"{text}\n".encode())


def make_numbered_folder(parent: Path, stem: str) -> Path:
    """Make the first of `stem-1`, `stem-2`, ... that does not exist; no other process gets it."""
    for number in itertools.count(1):
        folder = parent / f"{stem}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result of a finished run.

    Raises ValueError if `folder` holds none.
    """
    path = folder / RESULT
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {RESULT}: the run has not come to its end; "
            "continue it with resume=true, or name another folder"
        )
    return json.loads(path.read_text(encoding="utf-8"))
