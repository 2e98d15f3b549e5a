"""Atomic writing of the files of a run's folder."""

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unimem.integrity import digests, sealed
from unimem.runs.layout import FILES, RESULT
from unimem.words import writing


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader of `path` finds either the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with writing(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that renames survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_readers(folder: Path) -> None:
    """Set the mode of the files of `folder` to what the umask says.

    safetensors writes files that the owner alone can read.
    """
    probe = folder / f".mode-{os.getpid()}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` atomically as readable JSON; NaN and infinity are errors."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_bytes_atomic(path, f"{text}\n".encode())


def write_result(folder: Path, result: dict[str, Any], files: Iterable[str]) -> None:
    """Write a run's result with the digests of its files and its own digest.

    The files are flushed to disk before the result that names them is written.

    Args:
        folder: the run's folder.
        result: the run's result.
        files: names of files or folders in `folder`.
    """
    found = digests(folder, files)
    for name in found:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    for parent in {(folder / name).parent for name in found}:
        fsync_folder(parent)
    write_json_atomic(folder / RESULT, sealed(result | {FILES: found}))


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
