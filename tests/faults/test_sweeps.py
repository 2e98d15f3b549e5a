"""Sweeps that start at once, lose a cell or are killed themselves: every cell is trained once."""

import os
import signal
import time

import pytest
from studies.conftest import metrics, processes_of, sweeps, sweeps_in  # noqa: F401 (fixtures)
from studies.test_processes import is_cell, records

LONG = ("trainer.max_steps=300", "trainer.checkpoint_every=20", "seed=0,1", "jobs=2")


@pytest.mark.fault("P2", "two sweeps of the same cells start at once", "each is trained once")
def test_two_sweeps_at_once(sweeps, injected):  # noqa: F811
    both = [sweeps.start("seed=0,1"), sweeps.start("study=b", "seed=1,0")]
    injected()
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert list(sweeps.starts().values()) == [1, 1]
    assert [len(metrics(cell)) for cell in sweeps.cells()] == [8, 8]
    injected.held()


@pytest.mark.fault(
    "P4",
    "SIGKILL of a sweep's cell, then of the sweep",
    "the other cell goes on; the same command runs what is missing, to the bit",
)
def test_a_sweep_that_loses_a_cell_and_is_killed(sweeps_in, tmp_path, injected):  # noqa: F811
    whole, broken = sweeps_in(tmp_path / "whole"), sweeps_in(tmp_path / "broken")
    code, out = whole.run(*LONG)
    assert code == 0, out

    process = broken.start(*LONG)
    broken.wait_for_step(30, 2, process)
    killed, other = broken.cells()
    (child,) = [pid for pid in processes_of(broken.output) if is_cell(pid, killed)]
    os.kill(child, signal.SIGKILL)
    injected()
    before = len(metrics(other))
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "killed by SIGKILL" in out, out
    assert len(metrics(other)) == 300 > before and (other / "result.json").exists()
    injected.held()

    process = broken.start(*LONG)
    steps = len(metrics(killed))
    broken.wait_for_step(steps + 10, 1, process)
    while len(metrics(killed)) < steps + 10:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    injected()
    process.wait()
    time.sleep(0.3)
    assert processes_of(broken.output) == [], "a cell outlives its sweep"
    code, out = broken.run(*LONG)
    assert code == 0 and "2 of 2 done, 1 done before, 1 resumed" in out, out
    for one, two in zip(whole.cells(), broken.cells(), strict=True):
        assert len(metrics(one)) == 300 and metrics(one) == metrics(two)
        assert records(one) == records(two)
    injected.held()
