"""Faults inside a process, at a named place: for the process that is to suffer them, not for src.

A `Fault` names a call by the file that it is made with; when the process comes to it, it leaves a
mark on the disk, and then gets its signal. What it runs is the command itself: the calls are
wrapped, and nothing else is changed.
"""

import builtins
import importlib
import io
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

WRITE = "write"
"""The `call` that stands for writing to a file that python opened."""


@dataclass(frozen=True)
class Fault:
    """A signal that a process sends itself at a call.

    Attributes:
        call: `os.replace` and the like, `write`, or `package.module:name` of a function as that
            module calls it.
        file: pattern of the path that it is called with; of two paths, of the second.
        when: before the call, after it, or `half`: after half of what is written.
        number: of the matching calls, which one.
        send: the signal.
    """

    call: str
    file: str = "*"
    when: str = "before"
    number: int = 1
    send: int = signal.SIGKILL

    def __str__(self) -> str:
        more = f" {self.number}" if self.number > 1 else ""
        name = signal.Signals(self.send).name
        return f"{name} {self.when} {self.call}{more} {self.file.strip('*/')}"

    def as_dict(self) -> dict[str, Any]:
        """Give what `Fault(**...)` makes it of again, for JSON."""
        return asdict(self)


def arm(faults: list[Fault], marks: Path) -> None:
    """Make this process suffer the faults; each one adds a line to `marks` just before it comes."""
    for fault in faults:
        _Armed(fault, marks).install()


class _Armed:
    def __init__(self, fault: Fault, marks: Path):
        self.fault, self.marks = fault, marks
        self.seen = 0

    def install(self) -> None:
        call = self.fault.call
        if call == WRITE:
            opened = self.opened(io.open)
            io.open = builtins.open = opened  # pathlib takes the one, everybody else the other
            return
        module, _, name = call.partition(":") if ":" in call else call.rpartition(".")
        owner: Any = importlib.import_module(module)
        *outer, name = name.split(".")
        for each in outer:
            owner = getattr(owner, each)
        setattr(owner, name, self.wrapped(getattr(owner, name)))

    def due(self, path: str) -> bool:
        if not fnmatch(path, self.fault.file):
            return False
        self.seen += 1
        return self.seen == self.fault.number

    def strike(self) -> None:
        handle = os.open(self.marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{self.fault}\n".encode())
        os.close(handle)
        os.kill(os.getpid(), self.fault.send)

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            due = self.due(_path_of(args))
            if due and self.fault.when == "before":
                self.strike()
            given = function(*args, **kwargs)
            if due and self.fault.when == "after":
                self.strike()
            return given

        return call

    def opened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            found = original(file, mode, *args, **kwargs)
            writes = not isinstance(file, int) and set(mode) & set("wax+")
            if writes and fnmatch(os.fsdecode(file), self.fault.file):
                return _Written(found, self)
            return found

        return call


class _Written:
    """An open file that suffers a fault when it is written to."""

    def __init__(self, file: Any, armed: _Armed):
        self._file, self._armed = file, armed

    def write(self, data: Any) -> Any:
        armed = self._armed
        armed.seen += 1
        if armed.seen != armed.fault.number:
            return self._file.write(data)
        if armed.fault.when == "half":
            self._file.write(data[: len(data) // 2])
        elif armed.fault.when == "after":
            self._file.write(data)
        self._file.flush()
        armed.strike()
        if armed.fault.when == "half":
            return self._file.write(data[len(data) // 2 :])
        return len(data) if armed.fault.when == "after" else self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def _path_of(args: tuple[Any, ...]) -> str:
    """Give the path that a call is about: its last one, or that of an open file."""
    if args and type(args[0]) is int:
        return os.readlink(f"/proc/self/fd/{args[0]}")
    paths = [os.fsdecode(arg) for arg in args if isinstance(arg, str | bytes | os.PathLike)]
    return paths[-1] if paths else ""
