"""Time and memory of a study, told before it starts."""

import json
from pathlib import Path

import pytest
from studies.conftest import TINY

from unimem.config import compose_node, resolve
from unimem.studies.cells import Cell
from unimem.studies.estimate.estimate import (
    CPU_RATE,
    GPU_RATE,
    STARTING,
    RunEstimate,
    estimate,
    report,
    schedule,
)
from unimem.studies.estimate.flops import work_of
from unimem.studies.estimate.throughput import measured_runs
from unimem.studies.study import expand


def cells(tmp_path, *arguments: str) -> tuple[Cell, ...]:
    return expand([*TINY, f"output={tmp_path}", *arguments]).cells


def record(folder: Path, cell: Cell, *overrides: str, training: float, rest: float) -> None:
    """Write what a run of the cell's settings, but for some, would have recorded."""
    work = work_of(cell, 0)
    assert work is not None
    config = resolve(compose_node("train", [*cell.overrides.lines, *overrides])) | {"name": "a"}
    result = {
        "config": config, "parameters": work.parameters, "steps": config["trainer"]["max_steps"],
        "seconds": training + rest, "training_seconds": training,
        "signature": cell.signature, "tokens_seen": work.trained,
        "evaluation": {"tokens": 120, "documents": 3, "scores": {"own": 0, "off": 0, "other": 0}},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))


def test_without_a_measurement_a_rate_is_assumed_and_named(tmp_path):
    (cell,) = cells(tmp_path)
    (found,) = estimate([cell], tmp_path, gpus=0)
    assert found.work is not None
    flops = found.work.training + found.work.reading
    assert found.seconds == pytest.approx(STARTING + flops / CPU_RATE)
    text = "\n".join(report([found], 1, 1))
    assert "runs: 1, finished already: 0" in text and "estimate" in text
    assert "assumed 20 GFLOP/s for a process on a CPU (runs: 1)" in text
    (cell,) = cells(tmp_path, "trainer.accelerator=gpu", "trainer.devices=2")
    (found,) = estimate([cell], tmp_path, gpus=2)
    assert found.work is not None
    seconds = found.work.training / (2 * GPU_RATE) + found.work.reading / GPU_RATE
    assert found.seconds == pytest.approx(STARTING + seconds)
    assert "40 % of 400 TFLOP/s for a GPU" in "\n".join(report([found], 1, 1))


def test_sharded_weights_are_told(tmp_path):
    def text(*arguments, gpus):
        given = ("trainer.strategy=fsdp", "trainer.accelerator=gpu", "trainer.devices=auto")
        found = estimate(cells(tmp_path, *given, *arguments), tmp_path, gpus)
        return found[0].work, "\n".join(report(found, 1, 1))

    (one, alone), (shard, several) = text(gpus=0), text(gpus=8)
    assert one.weight_bytes == 8 * shard.weight_bytes
    assert "not sharded on one device: set trainer.devices" in alone
    assert "sharded over 8 devices" in several


def test_runs_alike_are_estimated_as_they_were_measured(tmp_path):
    cell, longer = cells(tmp_path, "trainer.max_steps=8,80")
    record(tmp_path / "runs" / "a", cell, "seed=5", "trainer.learning_rate=1", training=4, rest=3)
    found = estimate([cell, longer], tmp_path, gpus=0)
    assert [run.seconds for run in found] == pytest.approx([STARTING + 7, STARTING + 43])
    assert "as measured here on runs alike (runs: 2)" in "\n".join(report(found, 2, 1))


@pytest.mark.parametrize(
    "override", ["trainer.batch_size=4", "model.hidden_size=32", "memory.segment_length=4",
                 "method=longformer", "trainer.threads=2", "trainer.precision=bf16-mixed"],
)  # fmt: skip
def test_runs_that_differ_in_what_takes_time_say_nothing(tmp_path, override):
    (cell,) = cells(tmp_path)
    (other,) = cells(tmp_path, override)
    record(tmp_path / "runs" / "a", other, training=4, rest=3)
    (found,) = estimate([cell], tmp_path, gpus=0)
    assert found.assumed is not None


def test_the_same_budgets_come_before_others(tmp_path):
    small, large = cells(tmp_path, "memory.size=12,24")
    record(tmp_path / "runs" / "a", small, training=4, rest=3)
    (scaled,) = estimate([large], tmp_path, gpus=0)
    assert STARTING + 7 < scaled.seconds < STARTING + 14 and scaled.assumed is None
    record(tmp_path / "runs" / "b", large, training=40, rest=30)
    (same,) = estimate([large], tmp_path, gpus=0)
    assert same.seconds == pytest.approx(STARTING + 70)


def test_records_of_another_version_are_left_out(tmp_path):
    (cell,) = cells(tmp_path)
    record(tmp_path / "runs" / "a", cell, training=4, rest=3)
    assert len(measured_runs(tmp_path)) == 1
    path = tmp_path / "runs" / "a" / "result.json"
    result = json.loads(path.read_text())
    result["config"]["trainer"]["speed"] = 3
    path.write_text(json.dumps(result))
    assert measured_runs(tmp_path) == []


def test_what_is_finished_does_not_count(tmp_path):
    one, other = cells(tmp_path, "seed=0,1")
    record(one.folder, one, training=4, rest=3)
    found = estimate([one, other], tmp_path, gpus=0)
    assert [run.cell for run in found] == [other]
    assert report(found, 2, 1)[0] == "runs: 2, finished already: 1"
    assert report([], 2, 1) == ["runs: 2, finished already: 2"]


def test_slots_are_filled_in_order_and_cells_wait_for_their_base(tmp_path):
    base, one, two = cells(tmp_path, "seed=0,1,2")
    one, two = (Cell(**(vars(cell) | {"base": base})) for cell in (one, two))
    runs = [
        RunEstimate(cell=cell, work=None, seconds=seconds, assumed=None)
        for cell, seconds in ((base, 10.0), (one, 5.0), (two, 7.0))
    ]
    assert schedule(runs, 1) == 22
    assert schedule(runs, 2) == 17
    assert schedule(runs[1:], 2) == 7
    assert schedule([], 2) == 0


def test_a_model_of_unknown_size_is_named(tmp_path):
    own = [o for o in TINY if not o.startswith("model")]
    study = expand([*own, "model=hf", "model.name=some/model", f"output={tmp_path}"])
    lines = report(estimate(study.runs, tmp_path, gpus=0), 1, 1)
    assert lines == [
        "runs: 1, finished already: 0",
        "  left out some/model, whose size is not known here (runs: 1): set model.parameters and "
        "model.num_layers",
    ]
