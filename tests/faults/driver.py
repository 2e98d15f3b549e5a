"""Starts commands, lets faults come over them, and starts the same command again until it is done.

And compares what is left with a run that nothing happened to.
"""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from faults.inject import Fault
from safetensors.torch import load_file
from training.conftest import TINY, XL

TESTS = Path(__file__).parents[1]
STEPS, EVERY = 24, 5
SHORT = (
    *(line for line in TINY if not line.startswith("trainer.checkpoint_every")),
    f"trainer.max_steps={STEPS}",
    f"trainer.checkpoint_every={EVERY}",
    "trainer.keep_checkpoints=2",
    "name=a",
)
"""A run of about a second beside the imports."""


def settings(*more: str, method: Sequence[str] = XL) -> tuple[str, ...]:
    """Return SHORT with a method; of a setting that is given twice, the later value counts.

    `-data` takes away all of SHORT that begins so.
    """
    chosen: dict[str, str] = {}
    for line in (*SHORT, *method, *more):
        if line.startswith("-"):
            chosen = {k: each for k, each in chosen.items() if not k.startswith(line[1:])}
        else:
            chosen[line.partition("=")[0]] = line
    return tuple(chosen.values())


class Started:
    """A command that was started, by fork or anew; `folder` takes what it says."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes] | None = None):
        self.folder, self._process = folder, process

    @property
    def pid(self) -> int:
        if self._process is not None:
            return self._process.pid
        return int(_wait_for_file(self.folder / "pid"))

    def poll(self) -> int | None:
        """Return the exit code, `-number` after a signal; None while it runs."""
        if self._process is not None:
            return self._process.poll()
        path = self.folder / "status"
        return int(path.read_text()) if path.exists() else None

    def wait(self, timeout: float = 120) -> int:
        """Wait for the exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"it still runs: {self.said}"
            time.sleep(0.005)
        return code

    def send(self, number: int, *, to_all: bool = False) -> None:
        """Send a signal to the process, or to all of its session, as a terminal does."""
        if to_all:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """All that it wrote, of both kinds."""
        names = [self.folder / name for name in ("out", "log")]
        return "".join(path.read_text(errors="replace") for path in names if path.exists())

    @property
    def suffered(self) -> int:
        """How many of its faults have come."""
        marks = self.folder / "marks"
        return len(marks.read_text().splitlines()) if marks.exists() else 0


class Commands:
    """Starts commands under one folder, and kills at the end what still runs."""

    def __init__(self, folder: Path, forks: "subprocess.Popen[bytes]"):
        self._folder, self._forks = folder, forks
        self.started: list[Started] = []

    def _place(self) -> Path:
        place = self._folder / f"command-{len(self.started)}"
        place.mkdir(parents=True)
        return place

    def fork(
        self,
        *arguments: str,
        module: str = "unimem.cli.train",
        faults: Sequence[Fault] = (),
        **environment: str,
    ) -> Started:
        """Start a command in a process that has imported the libraries already."""
        asked = {
            "module": module,
            "arguments": arguments,
            "faults": [fault.as_dict() for fault in faults],
            "environment": environment,
            "folder": str(self._place()),
        }
        assert self._forks.stdin is not None
        self._forks.stdin.write(f"{json.dumps(asked)}\n".encode())
        self._forks.stdin.flush()
        self.started.append(Started(Path(asked["folder"])))
        return self.started[-1]

    def start(
        self, *arguments: str, module: str = "unimem.cli.train", **environment: str
    ) -> Started:
        """Start a command as a shell does."""
        place = self._place()
        with (place / "out").open("wb") as out, (place / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(Started(place, process))
        return self.started[-1]

    def close(self) -> None:
        for each in self.started:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
                each.wait()


@contextmanager
def fork_server() -> Iterator["subprocess.Popen[bytes]"]:
    """Start what `Commands.fork` forks from."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-m", "faults.forks"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


class Disturbed:
    """A run that faults come over: the same command is started until the run is finished."""

    def __init__(self, commands: Commands, output: Path, arguments: Sequence[str]):
        self._commands = commands
        self.arguments = (*arguments, f"output={output}")
        self.run = output / "runs" / "a"

    def command(self) -> list[str]:
        """Return the arguments, each time the same."""
        return [*self.arguments, "resume=auto"]

    def fork(self, *faults: Fault, **environment: str) -> Started:
        """Start it or continue it, in a fork."""
        return self._commands.fork(*self.command(), faults=faults, **environment)

    def start(self, **environment: str) -> Started:
        """Start it or continue it, in a new process."""
        return self._commands.start(*self.command(), **environment)

    def suffer(self, fault: Fault, **environment: str) -> Started:
        """Start or continue it, and let it be killed; the run must not be finished then."""
        process = self.fork(fault, **environment)
        code = process.wait()
        assert code == -fault.send and process.suffered == 1, f"{fault}: {code}, {process.said}"
        assert not (self.run / "result.json").exists()
        return process

    def finish(self, **environment: str) -> Path:
        """Continue it without a fault to its end."""
        process = self.fork(**environment)
        assert process.wait() == 0, process.said
        return self.run


def wait_for_step(run: Path, step: int, process: Started) -> None:
    """Wait until `step` is recorded; the process must be running then."""
    deadline = time.monotonic() + 120
    path = run / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.001)
    raise AssertionError(f"step {step} was not reached: {process.poll()}, {process.said}")


class Undisturbed:
    """Runs that nothing happens to, each made once for all tests of a session."""

    def __init__(self, folder: Path, forks: "subprocess.Popen[bytes]"):
        self._folder, self._forks = folder, forks

    def __call__(self, arguments: Sequence[str]) -> Path:
        """Return the folder of the run with these arguments."""
        output = self._folder / hashlib.sha256(repr(sorted(arguments)).encode()).hexdigest()[:16]
        output.mkdir(parents=True, exist_ok=True)
        run = output / "runs" / "a"
        with (output / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (run / "result.json").exists():
                commands = Commands(output / "commands", self._forks)
                process = commands.fork(*arguments, f"output={output}")
                assert process.wait() == 0, process.said
        return run


NOT_REPEATED = {
    "seconds",
    "tokens_per_second",
    "training_seconds",
    "finished_at",
    "peak_memory_bytes",
    "logged",  # the clock, as the metrics saved it
    "sha256",  # of the records, which hold the clock
    "metrics.jsonl",  # its sha256
    "check",  # sha256 of the result
    "output",
    "cache",
    "resume",
}
"""What no two runs share: the clock, memory in use, and where and how they were started."""


@dataclass(frozen=True)
class Compared:
    """How much was compared and equal, to the bit."""

    steps: int
    tensors: int
    documents: int
    values: int


def compare(run: Path, whole: Path) -> Compared:
    """Assert that two finished runs are equal to the bit, in all that they leave.

    Loss, learning rate and tokens of every step; the weights; the last checkpoint with the
    optimizer, the random state and the memory; the loss of every document's tokens; the result.
    """
    asked = yaml.safe_load((whole / "config.yaml").read_text())
    last = asked["trainer"]["max_steps"]
    lines, expected = _lines(run), _lines(whole)
    assert lines == expected
    steps = sum("loss" in line for line in lines)
    assert steps == last and [line["step"] for line in lines if "loss" in line] == [
        *range(1, last + 1)
    ]

    one, other = (_checkpoint(folder, last) for folder in (run, whole))
    values = same(one, other)
    assert {"state_dict", "optimizer_states", "unimem", "loops", "callbacks"} <= one.keys()
    own = one["unimem"]["processes"][0]
    assert own["bank"] is not None and {"python", "numpy", "torch"} <= own["random"].keys()

    saved, expected = (_model(folder) for folder in (run, whole))
    assert same(saved, expected) == len(saved) > 20
    assert len(one["state_dict"]) >= len(saved)

    with np.load(run / "documents.npz") as found, np.load(whole / "documents.npz") as arrays:
        assert sorted(found.files) == sorted(arrays.files) and len(arrays.files) > 2
        for name in arrays.files:
            assert found[name].dtype == arrays[name].dtype
            assert found[name].tobytes() == arrays[name].tobytes(), name
        documents = max(len(found[name]) for name in found.files if found[name].ndim)
    result, expected = (json.loads((f / "result.json").read_text()) for f in (run, whole))
    assert same(result, expected) > 50
    assert documents >= asked["evaluation"]["documents"]
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name], "left behind"
    return Compared(steps, len(saved), documents, values)


def same(one: Any, other: Any, place: str = "") -> int:
    """Assert that nested values are equal to the bit; return their number."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor) and one.dtype == other.dtype, place
        assert one.shape == other.shape and torch.equal(one, other), place
        return 1
    assert type(one) is type(other), place
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), place
        return sum(
            same(one[key], other[key], f"{place}/{key}") for key in one if key not in NOT_REPEATED
        )
    if isinstance(one, list | tuple):
        assert len(one) == len(other), place
        pairs = zip(one, other, strict=True)
        return sum(same(a, b, f"{place}/{i}") for i, (a, b) in enumerate(pairs))
    assert one == other, f"{place}: {one} is not {other}"
    return 1


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in NOT_REPEATED} for line in lines]


def _checkpoint(run: Path, step: int) -> dict[str, Any]:
    path = run / "checkpoints" / f"step-{step:08d}.ckpt"
    return torch.load(path, weights_only=True)


def _model(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "model").glob("*.safetensors"))
    return {f"{path.stem}/{k}": v for path in files for k, v in load_file(path).items()}


def _wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.002)
    return path.read_text()
