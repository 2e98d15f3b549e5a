"""The commands. Ctrl-C ends each of them without a traceback, while it still imports too."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

STOPPED = 128 + signal.SIGINT


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Leave at once during an import, which libraries turn into other errors; else interrupt."""
    above = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(STOPPED)
        above = above.f_back
    raise KeyboardInterrupt


def _on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End without a traceback where the user stopped the command or closed its output."""
    if issubclass(kind, KeyboardInterrupt | BrokenPipeError):
        os._exit(STOPPED if issubclass(kind, KeyboardInterrupt) else 1)
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
