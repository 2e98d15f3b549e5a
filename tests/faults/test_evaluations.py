"""Evaluations that are killed: the run is as it was, and the same command gives the same record."""

import json
import shutil
import signal

import pytest
from faults.driver import same
from faults.inject import Fault

KILLED = [
    Fault("os.mkdir", "*/eval-1", "after"),
    Fault("write", "*/documents.npz", "half", 2),
    Fault("os.replace", "*/result.json", "before"),
    Fault("write", "*/.result.json.tmp-*", "half"),
]


@pytest.mark.fault(
    "E1",
    "SIGKILL of unimem-eval before, in and after its documents and in its record",
    "the run is untouched, no half record counts, and the same command finds the same",
)
def test_killed_while_it_evaluates(disturbed, undisturbed, commands, injected, tmp_path):
    whole = undisturbed(disturbed().arguments[:-1])
    run = tmp_path / "copy"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("eval-*"))
    before = content(run)
    for fault in KILLED:
        process = commands.fork(f"run={run}", module="unimem.cli.evaluate", faults=[fault])
        assert process.wait() == -signal.SIGKILL and process.suffered == 1, process.said
        injected()
        assert not list(run.glob("eval-*/result.json"))
        shutil.rmtree(run / "eval-1")
        assert content(run) == before
        process = commands.fork(f"run={run}", module="unimem.cli.evaluate")
        assert process.wait() == 0, process.said
        found, trained = (
            json.loads((folder / "result.json").read_text())["evaluation"]
            for folder in (run / "eval-1", whole)
        )
        assert same(found["scores"], trained["scores"]) >= 12
        shutil.rmtree(run / "eval-1")
        injected.held()


def content(folder):
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert len(found) > 6
    return found
