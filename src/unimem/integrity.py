"""Whether the files of a finished run are as they were written.

`result.json` holds the sha256 of each file that its numbers rest on (`files`: weights, tokenizer,
losses, metrics), and of its own content (`check`). Whoever reads such a file compares it first:
neither safetensors nor JSON notices a flipped bit.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULT = "result.json"
"""What a finished run found out; it exists if and only if the run came to its end."""

FILES = "files"
CHECK = "check"

_compared: set[tuple[Any, ...]] = set()
"""Files that this process compared to their digests, as they were then."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content (hexadecimal). Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of files in a run's folder, by their paths within it.

    A name of a folder stands for all files in it; what does not exist is left out.
    """
    found: dict[str, str] = {}
    for name in names:
        path = folder / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {
            file.relative_to(folder).as_posix(): file_sha256(file)
            for file in files
            if file.is_file()
        }
    return found


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its content as its last entry."""
    plain = json.loads(json.dumps(record, allow_nan=False))
    return plain | {CHECK: _content_sha256(plain)}


def is_changed(record: Mapping[str, Any]) -> bool:
    """Return whether a record is sealed, and its content is not that of its digest."""
    return CHECK in record and record[CHECK] != _content_sha256(record)


def require_whole(path: Path) -> None:
    """Compare a file of a run, or all files of a folder in it, to the run's `result.json`.

    A path that lies in no finished run, and a run of an earlier version, whose record holds no
    digests, cannot be compared. A file is compared once in a process, unless it changes.

    Raises:
        ValueError: a file is missing or is not as it was written; the message names it.
    """
    folder = next((p for p in (path, *path.parents[:2]) if (p / RESULT).is_file()), None)
    if folder is None:
        return
    inside = path.relative_to(folder).as_posix()
    for name, expected in _recorded(folder / RESULT).items():
        if inside in (".", name) or name.startswith(f"{inside}/"):
            _compare(folder / name, str(expected), folder / RESULT)


def _recorded(record: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(record.read_text(encoding="utf-8")).get(FILES)
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}  # whoever reads the record says what is wrong with it
    return found if isinstance(found, dict) else {}


def _compare(file: Path, expected: str, record: Path) -> None:
    try:
        state = file.stat()
        key = (str(file.resolve()), state.st_ino, state.st_mtime_ns, state.st_size, expected)
        if key in _compared:
            return
        found = file_sha256(file)
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}), and {_remedy(record)}"
        ) from None
    if found != expected:
        raise ValueError(
            f"{file} is damaged: its sha256 is {found[:12]}.., not {expected[:12]}.., and "
            f"{_remedy(record)}"
        )
    _compared.add(key)


def _remedy(record: Path) -> str:
    return f"{record} was made with it: bring that file back, or run it again under another name"


def _content_sha256(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != CHECK}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
