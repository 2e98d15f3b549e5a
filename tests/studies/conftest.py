import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_run

TINY = (*tiny_run.TINY, *tiny_run.XL, "trainer.checkpoint_every=5")
BASE = tuple(a for a in TINY if not a.startswith(("method", "memory.size", "memory.window")))
"""TINY without memory: what a base run of it is made of, beside its method."""

CELLS = tuple(a for a in TINY if not a.startswith("model"))
"""TINY for cells that have their model from a base."""

TIMES = ("seconds", "tokens_per_second")


def study_file(folder: Path, text: str) -> str:
    """Write a study file, and return the argument that names it."""
    file = folder / "a.yaml"
    file.write_text(text)
    return f"sweeps={file}"


class Sweeps:
    """Starts sweeps of one output folder as processes, and looks at what they leave."""

    def __init__(self, output: Path):
        self.output = output
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *more: str, arguments: Sequence[str] = TINY) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "unimem.cli.sweep", *arguments, f"output={self.output}"]
        process = subprocess.Popen(
            [*command, *more],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *more: str, arguments: Sequence[str] = TINY) -> tuple[int, str]:
        process = self.start(*more, arguments=arguments)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def cells(self) -> list[Path]:
        return sorted(p for p in (self.output / "cells").glob("[!.]*") if p.is_dir())

    def starts(self) -> dict[str, int]:
        """How often a process was started for each cell."""
        logs = sorted((self.output / "cells").glob("*.log"))
        return {log.stem: log.read_text().count("== started ") for log in logs}

    def steps(self) -> int:
        """How many steps were taken, those repeated after a kill too."""
        logs = (self.output / "cells").glob("*.log")
        return sum(log.read_text().count(": loss ") for log in logs)

    def wait_for_step(self, step: int, cells: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if len([cell for cell in self.cells() if len(metrics(cell)) >= step]) >= cells:
                return
            time.sleep(0.01)
        raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def metrics(cell: Path) -> list[dict[str, Any]]:
    path = cell / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in whole]


def processes_of(folder: Path) -> list[int]:
    """All processes whose command line names `folder`."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def sweeps_in():
    """Sweeps under a folder; whatever still runs at the end of the test is killed."""
    found: list[Sweeps] = []

    def sweeps_in(output: Path) -> Sweeps:
        found.append(Sweeps(output))
        return found[-1]

    yield sweeps_in
    for process in [process for sweeps in found for process in sweeps.processes]:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def sweeps(sweeps_in, tmp_path) -> Sweeps:
    return sweeps_in(tmp_path / "out")
