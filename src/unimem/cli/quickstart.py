"""Quickstart: train the exhibits side by side, and say what memory does in them.

    python -m unimem.cli.quickstart            some minutes on two cores
    python -m unimem.cli.quickstart --quick    one minute, less to see
    python -m unimem.cli.quickstart --seeds 3  the exhibit of known truth three times over

Exit status: 0 if every verdict is PASS, 1 otherwise.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from unimem.runs.files import make_numbered_folder

OUTPUT = Path("outputs/quickstart")
WORKERS = 2
_LOGGED = re.compile(r"\d\d:\d\d:\d\d ")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One child process of `unimem-train`, recorded in the folder `name`."""

    name: str
    experiment: str
    overrides: Sequence[str] = ()


def main() -> None:
    """Run `python -m unimem.cli.quickstart` with the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="quickstart", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="in a minute, with less to see")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the exhibit of known truth")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds {arguments.seeds} must be 1 or more")
    # As an exception, so that the trainings are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(0 if quickstart(OUTPUT, arguments.quick, arguments.seeds) else 1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} ended with status {error.returncode}:\n{error.output}")


def quickstart(output: Path, quick: bool, seeds: int) -> bool:
    """Train, report, and say whether every verdict is PASS.

    Raises `subprocess.CalledProcessError` if a training ended badly.
    """
    began = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    folder = make_numbered_folder(output, "run")
    trainings = plan(quick, seeds)
    print(f"training {len(trainings)} models, {WORKERS} at a time, one thread each, in {folder}:")
    for training in trainings:
        print(f"  {training.name:<16} experiment={training.experiment}")
    train_all(trainings, folder)
    print("reading what was found", flush=True)
    # Training happens in the children; only now is numpy and matplotlib needed here.
    from unimem.cli.report import write_report

    seconds = time.perf_counter() - began
    report, passed = write_report(output, folder, quick=quick, seeds=seeds, seconds=seconds)
    print(f"\n{report}\nreport: {output / 'report.md'}")
    return passed


def plan(quick: bool, seeds: int) -> list[Training]:
    """Return what to train, the longest first."""
    if quick:
        small = (
            "trainer.max_steps=100",
            "data.train_documents=100",
            "data.validation_documents=12",
        )
        return [
            Training(name="code", experiment="quickstart_code", overrides=small),
            Training(name="urn", experiment="quickstart_urn"),
        ]
    trainings = [Training(name="code", experiment="quickstart_code")]
    for seed in range(seeds):
        trainings += [
            Training(name=f"{name}-{seed}", experiment=experiment, overrides=(f"seed={seed}",))
            for name, experiment in {
                "markov": "quickstart_markov",
                "markov-none": "quickstart_markov_none",
            }.items()
        ]
    return trainings


def train_all(trainings: Sequence[Training], folder: Path) -> None:
    """Run the trainings, `WORKERS` at a time, and show their progress.

    Raises `subprocess.CalledProcessError` for the first that ends badly; the others are stopped.
    """
    running: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(_train, training, folder, running) for training in trainings]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise


def _train(training: Training, folder: Path, running: list[subprocess.Popen[str]]) -> None:
    """Run one training; its whole output goes to a file, its progress here too."""
    command = [sys.executable, "-m", "unimem.cli.train", f"experiment={training.experiment}"]
    command += [f"output={folder.parent}", f"study={folder.name}", f"name={training.name}"]
    command += training.overrides
    lines: list[str] = []
    with (
        (folder / f"{training.name}.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line)
            if _LOGGED.match(line):
                print(f"{training.name:<16} {line}", end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(lines[-20:]))


if __name__ == "__main__":
    main()
