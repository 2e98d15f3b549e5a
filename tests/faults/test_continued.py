"""Runs that are continued: from every step, in other circumstances, with other settings."""

import os
import shutil
import signal

import pytest
from faults.driver import STEPS, compare, wait_for_step
from faults.inject import Fault
from studies.conftest import processes_of
from training.conftest import Runs, metrics

from unimem.config import ConfigError

EVERY_STEP = 20


@pytest.mark.fault(
    "R1", "a run is cut off after a step, at every one of its steps", "the rest to the bit"
)
def test_continued_from_every_step(runs, tmp_path, injected):
    arguments = ("name=a", f"trainer.max_steps={EVERY_STEP}")
    whole = runs.start(*arguments)
    for step in range(1, EVERY_STEP + 1):
        copy = Runs(tmp_path / "copy")
        copy.copy_at(whole, step)
        assert len(list((copy.output / "runs" / "a" / "checkpoints").glob("*.ckpt"))) == step
        injected()
        assert compare(copy.start(*arguments, "resume=true"), whole).steps == EVERY_STEP
        injected.held()
        shutil.rmtree(copy.output)


CIRCUMSTANCES = {
    "threads 1 -> 2": ("2", {}),
    "$MKL_CBWR None -> COMPATIBLE": ("1", {"MKL_CBWR": "COMPATIBLE"}),
    "$ONEDNN_MAX_CPU_ISA None -> SSE41": ("1", {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
}


@pytest.mark.fault(
    "R2",
    "a killed run is continued with other threads or kernels",
    'it says "exact resume: no" and why, and ends; unchanged it says yes',
)
def test_continued_in_other_circumstances(commands, disturbed, injected):
    run = disturbed()
    run.suffer(Fault("write", "*/metrics.jsonl", "after", 13))
    shutil.copytree(run.run, run.run.with_name("kept"))
    for told, (threads, changed) in CIRCUMSTANCES.items():
        same = [line for line in run.command() if not line.startswith("trainer.threads")]
        process = commands.fork(*same, f"trainer.threads={threads}", **changed)
        injected()
        assert process.wait() == 0, process.said
        assert f"exact resume: no, because {told}" in process.said
        assert len(metrics(run.run)) == STEPS
        injected.held()
        shutil.rmtree(run.run)
        shutil.copytree(run.run.with_name("kept"), run.run)
    process = run.fork()
    assert process.wait() == 0 and "exact resume: yes" in process.said


CHANGES = {
    "trainer.learning_rate": "0.01",
    "trainer.max_steps": "30",
    "trainer.batch_size": "3",
    "seed": "7",
    "memory.size": "16",
    "memory.segment_length": "4",
    "data.train_documents": "7",
    "model.num_layers": "3",
}


@pytest.mark.fault(
    "R3",
    "a stopped run is continued with one of eight settings changed",
    "it is refused, with both values, and nothing is changed",
)
def test_continued_with_other_settings(runs, tmp_path, injected):
    whole = runs.start("name=a")
    copy = Runs(tmp_path / "copy")
    copy.copy_at(whole, 3)
    folder = copy.output / "runs" / "a"
    before = content(folder)
    for name, value in CHANGES.items():
        injected()
        with pytest.raises(ConfigError) as refused:
            copy.start("name=a", "resume=true", f"{name}={value}")
        lines = [line for line in str(refused.value).splitlines() if line.startswith(f"  {name}: ")]
        assert len(lines) == 1 and lines[0].startswith(f"  {name}: {value}, was "), refused.value
        assert content(folder) == before
        injected.held()
    assert compare(copy.start("name=a", "resume=true"), whole).steps == 8


def content(folder):
    found = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert len(found) > 3
    return found


@pytest.mark.fault(
    "R4",
    "SIGKILL of the second of two processes that train together",
    "the first does not go on alone; continued, to the bit",
)
def test_one_of_two_processes_is_killed(disturbed, commands, injected, tmp_path):
    both = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=1")
    run = disturbed(*both)
    whole = commands.start(*run.arguments[:-1], f"output={tmp_path}/whole")
    process = run.start()
    wait_for_step(run.run, 12, process)
    (other,) = [pid for pid in processes_of(run.run.parents[1]) if pid != process.pid]
    os.kill(other, signal.SIGKILL)
    assert process.wait() not in (0, None)
    assert not (run.run / "result.json").exists()
    injected()
    process = run.start()
    assert process.wait() == 0, process.said
    assert whole.wait() == 0, whole.said
    assert compare(run.run, tmp_path / "whole" / "runs" / "a").steps == STEPS
    injected.held()


@pytest.mark.fault(
    "R5",
    "SIGKILL between the two halves of a step whose gradients are accumulated",
    "the whole step is taken again: to the bit",
)
def test_killed_in_the_middle_of_a_step(disturbed, undisturbed, injected):
    run = disturbed("trainer.accumulate=2")
    for number in (1, 13, 7):
        run.suffer(Fault("unimem.training.module:LitUniMem.training_step", "*", "after", number))
        injected()
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
    injected.held(3)


VALIDATED = [
    Fault("unimem.training.validation:score", "*", "before", 3),
    Fault("os.replace", "*/best-00000010.ckpt", "before"),
    Fault("os.replace", "*/best-00000010.ckpt", "after"),
    Fault("os.fsync", "*/.step-00000010.ckpt.tmp-*", "before"),
    Fault("os.unlink", "*/best-*.ckpt.sha256", "after"),
]


@pytest.mark.fault(
    "V1",
    "SIGKILL in validation, while the best weights are kept, and before the checkpoint after it",
    "validation is made once for every step, and the same weights are chosen: to the bit",
)
def test_killed_between_validation_and_checkpoint(disturbed, undisturbed, injected):
    run = disturbed(
        "trainer.validate_every=5",
        "trainer.keep_best=true",
        "trainer.learning_rate=0.01",
        "trainer.validation_documents=1",
    )
    for fault in VALIDATED:
        run.suffer(fault)
        injected()
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
    injected.held(len(VALIDATED))
