"""The commands. Ctrl-C ends each of them without a traceback, while it still imports too.

What they say goes through `say`, `leave` and `Shown`: names, notes and records of other people
cannot move the cursor of a terminal, or colour it.
"""

import logging
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import IO, NoReturn

from unimem.training.out_of_memory import OUT_OF_MEMORY, in_words, is_oom
from unimem.words import printable, system_error

STOPPED = 128 + signal.SIGINT


def say(text: object, file: IO[str] | None = None) -> None:
    """Print a line or several at once; control characters are shown as escapes."""
    print(printable(str(text)), file=file, flush=True)


def leave(text: object) -> NoReturn:
    """Print to stderr why the command ends, and end it with exit code 1."""
    sys.exit(printable(system_error(text) if isinstance(text, Exception) else str(text)))


class Shown(logging.Formatter):
    """Shows control characters of what is logged as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().format(record))


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Leave at once during an import, which libraries turn into other errors; else interrupt."""
    above = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(STOPPED)
        above = above.f_back
    raise KeyboardInterrupt


def _on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End without a traceback where the user stopped the command or closed its output.

    Or where memory ran out.
    """
    if issubclass(kind, KeyboardInterrupt | BrokenPipeError):
        os._exit(STOPPED if issubclass(kind, KeyboardInterrupt) else 1)
    if error is not None and is_oom(error):
        say(f"out of memory: {in_words(error)}", file=sys.stderr)
        os._exit(OUT_OF_MEMORY)
    sys.__excepthook__(kind, error, trace)


def quiet_interrupts() -> None:
    """Take Ctrl-C from Python's own handler, unless something else has it already."""
    sys.excepthook = _on_error
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


# As a script, or by `python -m`, which names the module only after its package was imported.
if os.path.basename(sys.argv[0]).startswith(("unimem-", "-m")):
    quiet_interrupts()
