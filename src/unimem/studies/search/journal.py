"""The file that remembers the trials of a search: Optuna's journal, one record a line."""

import fcntl
from pathlib import Path
from typing import IO

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

from unimem.config import ConfigError

JOURNAL = "search.journal"


class Journal(JournalStorage):
    """The journal in `folder`, which one process at a time has open.

    Raises `ConfigError` if another process has it.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._held = _hold(folder)
        path = folder / JOURNAL
        # Optuna's own lock outlives a process that is killed while it writes; ours does not.
        path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
        _cut_torn_line(path)
        super().__init__(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))

    def close(self) -> None:
        """Let other processes open it."""
        self._held.close()


def _hold(folder: Path) -> IO[str]:
    file = (folder / f".{JOURNAL}.held").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"{folder / JOURNAL} is in use by another unimem-search; wait for it, or give this "
            "search another name with study="
        ) from None
    return file


def _cut_torn_line(path: Path) -> None:
    """Drop a last record that a power cut left unfinished; Optuna would write on in its line."""
    if path.is_file() and not (text := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
