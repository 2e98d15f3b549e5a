"""A process that has imported the libraries, and forks a command for every line that it reads.

Importing takes longer than a tiny run, so that most faults are injected into commands that start
here. A fork has a session, a standard output and a standard error of its own.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def serve() -> None:
    """Fork what the lines on standard input ask for, until they end."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import unimem.cli.evaluate  # noqa: F401
    import unimem.cli.train  # noqa: F401
    import unimem.training.run  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            _wait_for(json.loads(line))


def _wait_for(asked: dict[str, Any]) -> None:
    """Start the command, and write down its number, and later how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(asked["folder"])
    pid = os.fork()
    if pid == 0:
        _run(asked, folder)
    _put(folder / "pid", pid)
    _, status = os.waitpid(pid, 0)
    _put(folder / "status", os.waitstatus_to_exitcode(status))
    os._exit(0)


def _put(path: Path, number: int) -> None:
    path.with_suffix(".new").write_text(str(number))
    path.with_suffix(".new").rename(path)


def _run(asked: dict[str, Any], folder: Path) -> None:
    from faults.inject import Fault, arm

    os.setsid()
    for number, name in enumerate(("/dev/null", folder / "out", folder / "log")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["arguments"]]
    arm([Fault(**fault) for fault in asked["faults"]], folder / "marks")
    code: Any = 0
    try:
        importlib.import_module(asked["module"]).main()
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:  # as python would
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
