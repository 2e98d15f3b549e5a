"""The files of a run's folder that others read: written whole or not at all."""

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unimem.integrity import FILES, RESULT, digests, is_changed, require_whole, sealed
from unimem.words import writing

__all__ = ["RESULT"]

CONFIG = "config.yaml"
"""The settings of a run, written before it starts."""


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that whoever opens `path`, whenever, finds the old content or the new one."""
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
    """Make what was renamed in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_readers(folder: Path) -> None:
    """Give the files of `folder` the mode that the umask says.

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
    """Write `value` as readable JSON, whole or not at all; NaN and infinity are errors."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_bytes_atomic(path, f"{text}\n".encode())


def write_result(folder: Path, result: dict[str, Any], files: Iterable[str]) -> None:
    """Write a run's result, with the digests of the files that it rests on and of itself.

    The files are made to survive a power cut before the result names them.

    Args:
        folder: the run's.
        result: what the run found out.
        files: names in `folder`, of files or of folders.
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


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result of a finished run: a mapping that holds at least its `config`.

    Raises ValueError, with what `folder` is instead, if it holds none or a damaged one.
    """
    path = folder / RESULT
    if not path.is_file():
        raise ValueError(_why_no_result(folder))
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {_AGAIN}") from None
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise ValueError(f"{path} is not the record of a run: it has no config; {_AGAIN}")
    if is_changed(result):
        raise ValueError(f"{path} is damaged: its content is not as it was written; {_AGAIN}")
    return result


def set_damaged_aside(folder: Path) -> str | None:
    """Rename a result that is damaged, or one of its files is, so that the run can be continued.

    Returns what is damaged, or None.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        read_result(folder)
        require_whole(folder)
    except ValueError as error:
        kept = path.with_name(f"{RESULT}.damaged")
        os.replace(path, kept)
        return f"{error}; kept as {kept.name}, and the run is not finished"
    return None


_AGAIN = "bring that file back, or run it again under another name"


def _why_no_result(folder: Path) -> str:
    """Say what a path is that is not the folder of a finished run, and what to name instead."""
    parent = folder.parent if folder.is_absolute() else Path(os.path.relpath(folder.parent))
    if not folder.exists():
        near = difflib.get_close_matches(folder.name, _runs_in(parent), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else _NAME_A_RUN
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not parent.exists():
            hint = f"for a model of the hub: {_EVALUATE_MODEL.format(folder)}"
        return f"{folder} does not exist; {hint}"
    if not folder.is_dir():
        return f"{folder} is a file, not the folder of a run; {_enclosing_run(parent)}"
    if (folder / CONFIG).is_file():
        return (
            f"{folder} holds no {RESULT}: the run has not come to its end; continue it with the "
            f"command that began it and name={folder.name} resume=true, or name another run"
        )
    if _is_run(parent):
        return f"{folder} is a part of a run; {_enclosing_run(parent)}"
    if (folder / "config.json").is_file():
        return (
            f"{folder} is a model in the Hugging Face format, not the folder of a run; "
            f"to evaluate it without training: {_EVALUATE_MODEL.format(folder)}"
        )
    runs = _runs_in(folder)
    if runs:
        more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
        return f"{folder} is not a run, but holds runs: name one of {', '.join(runs[:3])}{more}"
    missing = f"it holds neither {RESULT} nor {CONFIG}"
    return f"{folder} is not the folder of a run: {missing}; {_NAME_A_RUN}"


_NAME_A_RUN = "name the folder of a finished run, as outputs/runs/NAME"
_EVALUATE_MODEL = "unimem-train trainer.max_steps=0 model=hf model.name={}"


def _enclosing_run(folder: Path) -> str:
    """Name the run that a folder is, or lies in."""
    for outer in (folder, folder.parent):
        if _is_run(outer):
            return f"name the run's folder, {outer}"
    return _NAME_A_RUN


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESULT, CONFIG))


def _runs_in(folder: Path) -> list[str]:
    """Name the runs that lie directly in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _is_run(path))
