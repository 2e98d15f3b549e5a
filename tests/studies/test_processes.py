"""Real sweeps, really stopped and killed: every cell is run once, and to the same numbers."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from studies.conftest import TINY, metrics, processes_of

from unimem.runs.folder import weights_folder

LONG = ("trainer.max_steps=400", "trainer.checkpoint_every=20", "injection_layer=0,1", "jobs=2")


@pytest.mark.slow
def test_a_sweep_runs_its_cells_once(sweeps):
    cells = ("injection_layer=0,1", "jobs=2")
    code, out = sweeps.run(*cells)
    assert code == 0, out
    assert "2 of 2 done" in out
    study = json.loads((sweeps.output / "sweep" / "study.json").read_text())
    for entry in study["cells"]:
        result = json.loads((sweeps.output / entry["folder"] / "result.json").read_text())
        assert entry["label"] == f"injection_layer={result['memory']['memory.layers'][0]}"
    assert set(sweeps.starts().values()) == {1}

    code, out = sweeps.run(*cells)
    assert code == 0 and "2 of 2 done, 2 done before" in out
    assert set(sweeps.starts().values()) == {1}


@pytest.mark.slow
def test_only_cells_that_are_new_are_run_in_any_study(sweeps):
    assert sweeps.run("injection_layer=0,1", "jobs=2")[0] == 0
    code, out = sweeps.run("study=other", "injection_layer=0,1", "seed=0,1", "jobs=2")
    assert code == 0 and "4 of 4 done, 2 done before" in out, out
    assert list(sweeps.starts().values()) == [1, 1, 1, 1]
    listed = json.loads((sweeps.output / "other" / "study.json").read_text())["cells"]
    assert {Path(entry["folder"]).name for entry in listed} == sweeps.starts().keys()


@pytest.mark.slow
def test_a_cell_that_fails_or_is_killed_leaves_the_others_running(sweeps):
    arguments = ("trainer.max_steps=400", "trainer.learning_rate=1e-3,1e3,2e-3", "jobs=2")
    process = sweeps.start(*arguments, "trainer.warmup_steps=0")
    sweeps.wait_for_step(5, 1, process)
    (running,) = [cell for cell in sweeps.cells() if len(metrics(cell)) >= 5]
    (child,) = [pid for pid in processes_of(running.parent.parent) if is_cell(pid, running)]
    os.kill(child, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "1 of 3 done, 2 failed" in out
    assert "killed by SIGKILL" in out and "exit status 1" in out
    assert "at step" in out and "go on with: unimem-sweep" in out

    code, out = sweeps.run(*arguments, "trainer.warmup_steps=0")
    assert code == 1 and "2 of 3 done, 1 done before, 2 resumed, 1 failed" in out, out
    assert sorted(sweeps.starts().values()) == [1, 2, 2]


@pytest.mark.slow
def test_cells_start_from_the_weights_of_the_base_run(sweeps, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(20):
        text = f"document {number} says: " + "a sentence that comes again. " * 20
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    data = [
        "data=text",
        f"data.path={tmp_path}/texts",
        "data.vocab_size=300",
        f"data.cache={tmp_path}/cache",
    ]
    own = ("data", "method", "memory.size", "memory.window")
    base = [o for o in TINY if not o.startswith(own)] + ["method=vanilla", *data]
    varied = ("data", "model", "trainer.max_steps")
    fixed = [o for o in TINY if not o.startswith(varied)] + data
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({"base": base, "vary": {"trainer.max_steps": "0,8"}}))
    code, out = sweeps.run(f"sweeps={file}", arguments=fixed)
    assert code == 0 and "3 of 3 done" in out, out
    trained, untouched = (
        next(c for c in sweeps.cells() if c.name.startswith(start) and steps(c) == count)
        for start, count in (("vanilla", 8), ("transformer_xl", 0))
    )
    assert not (untouched / "model").exists()  # it trained nothing, and copies nothing
    assert records(trained)["weights"] == records(untouched)["weights"]


@pytest.mark.slow
def test_cells_read_with_the_weights_and_the_memory_of_their_base(sweeps, tmp_path):
    soft = ("method=unimix", "memory.topk=2", "memory.num_soft_tokens=3", "memory.fusion=gated")
    base = [*TINY, *soft, "injection_layer=1", "trainer.learning_rate=0.1", "seed"]
    study = {"study.mode": "evaluate", "base": base, "vary": {"memory.topk": "2,5", "seed": "0,1"}}
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(study))
    code, out = sweeps.run(f"sweeps={file}", "jobs=2", arguments=())
    assert code == 0 and "6 of 6 done" in out, out
    assert "estimate of what is left" in out
    listed = json.loads((sweeps.output / "sweep" / "study.json").read_text())
    trained = {
        entry["signature"]: records(sweeps.output / entry["folder"]) for entry in listed["bases"]
    }
    read = {entry["label"]: (records(sweeps.output / entry["folder"]), trained[entry["base"]])
            for entry in listed["cells"]}  # fmt: skip
    assert len(trained) == 2 and len(read) == 4
    for label, (found, of_base) in read.items():
        assert found["weights"] == of_base["weights"] and "memory.safetensors" in found["weights"]
        assert (found["losses"] == of_base["losses"]) == ("memory.topk=2" in label)

    # a run that is there: the same cell, found and not run again
    (folder,) = {sweeps.output / e["folder"] for e in listed["bases"] if e["label"].endswith("0")}
    again = ("study.mode=evaluate", f"base={folder}", "memory.topk=2,5")
    code, out = sweeps.run(*again, arguments=())
    assert code == 0 and "3 of 3 done, 3 done before" in out, out


@pytest.mark.slow
def test_two_sweeps_at_once_train_every_cell_exactly_once(sweeps):
    both = [sweeps.start("seed=0,1,2"), sweeps.start("study=b", "seed=2,1,0")]
    said = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert list(sweeps.starts().values()) == [1, 1, 1]
    assert all("3 of 3 done" in out for out in said)
    assert [len(metrics(cell)) for cell in sweeps.cells()] == [8, 8, 8]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_saves_and_tells_how_to_go_on(sweeps, number, code):
    long = (*LONG, "trainer.checkpoint_every=1000")
    process = sweeps.start(*long)
    sweeps.wait_for_step(5, 2, process)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == code, out
    assert "2 stopped" in out and "go on with: unimem-sweep" in out and "Traceback" not in out
    assert all(len(list(cell.glob("checkpoints/*.ckpt"))) == 1 for cell in sweeps.cells())
    code, out = sweeps.run(*long)
    assert code == 0 and "2 of 2 done, 2 resumed" in out, out
    assert list(sweeps.starts().values()) == [2, 2]


@pytest.mark.slow
def test_a_second_ctrl_c_kills(sweeps):
    process = sweeps.start(*LONG)
    sweeps.wait_for_step(5, 2, process)
    children = [pid for pid in processes_of(sweeps.output) if pid != process.pid]
    for pid in children:
        os.kill(pid, signal.SIGSTOP)  # cannot hear the first
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert processes_of(sweeps.output) == []


@pytest.mark.slow
def test_killed_ten_times_equals_uninterrupted(sweeps_in, tmp_path):
    cells = ("seed=0,1,2", "trainer.max_steps=300", "trainer.checkpoint_every=20", "jobs=2")
    whole, broken = sweeps_in(tmp_path / "whole"), sweeps_in(tmp_path / "broken")
    code, out = whole.run(*cells)
    assert code == 0, out
    code, out = broken.run(*cells, "seed=1")
    assert code == 0, out
    moments = random.Random(3)
    at_work = 0
    for number in range(10):
        steps = broken.steps() + moments.randint(1, 150)
        process = broken.start(*cells)
        if number % 3:
            while broken.steps() < steps:
                assert process.poll() is None
                time.sleep(random.uniform(0, 0.02))
        else:
            time.sleep(moments.uniform(0, 3))
        at_work += len(processes_of(broken.output)) - 1
        process.kill()
        process.wait()
        time.sleep(0.2)
        assert processes_of(broken.output) == [], "a cell outlives its sweep"
    code, out = broken.run(*cells)
    assert code == 0 and "3 of 3 done, 1 done before, 2 resumed" in out, out

    assert at_work >= 10
    assert [c.name for c in broken.cells()] == [c.name for c in whole.cells()]
    assert list(whole.starts().values()) == [1, 1, 1]
    logs = [(c.parent / f"{c.name}.log").read_text() for c in broken.cells()]
    assert sum(log.count("resumes            step-") for log in logs) >= 4
    for log in logs:
        assert "== started " not in log.partition("results  ")[2], "started after it was finished"
    for one, other in zip(whole.cells(), broken.cells(), strict=True):
        assert len(metrics(one)) == 300 and metrics(one) == metrics(other)
        assert records(one) == records(other)


def records(cell: Path) -> dict:
    """The weights' sha256, every token's loss, and what was found in them."""
    result = json.loads((cell / "result.json").read_text())
    with np.load(cell / "documents.npz") as arrays:
        losses = {name: arrays[name].tobytes() for name in arrays.files}
    scores = {use: score["nll"] for use, score in result["evaluation"]["scores"].items()}
    weights = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in weights_folder(cell, result["config"]).glob("*.safetensors")
    }
    assert weights and losses and scores
    return {
        "weights": weights,
        "losses": losses,
        "scores": scores,
        "config": result["config"]["seed"],
    }


def steps(cell: Path) -> int:
    return json.loads((cell / "result.json").read_text())["steps"]


def is_cell(pid: int, cell: Path) -> bool:
    return f"name={cell.name}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
