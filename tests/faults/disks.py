"""Small file systems in memory, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PAGE = 4096

mounts = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting needs root, or a namespace: unshare -rm make test-faults"
)


class Disk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, free: int = 0) -> None:
        """Take all room but about `free` bytes."""
        with self._filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(PAGE)):
                pass
        size = self._filler.stat().st_size
        with self._filler.open("r+b") as file:
            file.truncate(max(0, size - free))

    def make_room(self) -> None:
        self._filler.unlink()

    def remount(self, options: str) -> None:
        _mount("-o", f"remount,{options}", str(self.folder))


@contextmanager
def small_disk(folder: Path, options: str = "size=8m") -> Iterator[Disk]:
    """Mount a tmpfs with these options on a new folder. For tests marked `mounts`."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for whoever opens a file in it from now on, root too."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
