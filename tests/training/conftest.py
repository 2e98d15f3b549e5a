import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_run
from helpers.tiny_run import XL

from unimem.config import compose
from unimem.training.run import train

# Lightning 2.6 uses what torch 2.13 calls deprecated.
LIGHTNING = "ignore:.*LeafSpec.*:FutureWarning"

TINY = (*tiny_run.TINY, "trainer.checkpoint_every=1", "trainer.keep_checkpoints=100")
TIMES = ("seconds", "tokens_per_second")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(LIGHTNING))


class Runs:
    """Starts runs under one folder, and looks at what they leave."""

    def __init__(self, output: Path):
        self.output = output

    def overrides(self, *more: str, method=XL) -> list[str]:
        return [*TINY, *method, f"output={self.output}", *more]

    def start(self, *more: str, method=XL) -> Path:
        return train(compose(*self.overrides(*more, method=method)))

    def copy_at(self, run: Path, step: int) -> None:
        """Copy a finished run to here, as if it had been killed after `step`."""
        copy = self.output / "runs" / run.name
        shutil.copytree(run, copy)
        (copy / "result.json").unlink()
        shutil.rmtree(copy / "model")
        for path in (copy / "checkpoints").glob("step-*"):
            if int(path.name.split(".")[0].removeprefix("step-")) > step:
                path.unlink()


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(run: Path, step: int = 8) -> dict[str, torch.Tensor]:
    path = run / "checkpoints" / f"step-{step:08d}.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def same_weights(a: Path, b: Path, step: int = 8) -> bool:
    one, other = weights(a, step), weights(b, step)
    assert one.keys() == other.keys() and len(one) > 20
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path / "out")


@pytest.fixture
def start(runs):
    """Start `unimem-train` as a process; whatever still runs at the end of the test is killed."""

    def start(*more: str, method=XL, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "unimem.cli.train", *runs.overrides(*more, method=method)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    started: list[subprocess.Popen] = []
    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
