"""The command from end to end, its report, and what it says of mistakes."""

import json
import sys
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from unimem.bench.cases import Bench, cases
from unimem.bench.end_to_end import training_batch
from unimem.bench.record import attempt
from unimem.bench.run import bench
from unimem.cli import bench as command
from unimem.settings import describe

SMALL = ["shape=micro", "sizes=[0,64]", "repeats=1", "segment_length=16", "device=cpu"]


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Call `unimem-bench` with arguments, in an empty folder: what it printed, and its status."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["unimem-bench", *arguments])
        code = None
        try:
            command.main()
        except SystemExit as stop:
            code = stop.code
        return capsys.readouterr().out, code

    return call


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_command_writes_records_table_and_plot(call, tmp_path):
    methods = "methods=[vanilla,memorizing_transformer]"
    printed, code = call(*SMALL, methods, "what=all", "document_tokens=48", "topk=4")
    assert not code
    folder = tmp_path / "outputs" / "bench"
    written = {"micro-cpu.json", "bench.md", "bench.png", "bench.svg"}
    assert {file.name for file in folder.iterdir()} == written
    record = json.loads((folder / "micro-cpu.json").read_text())
    assert record["threads"] == 1 and record["backend"] == "auto" and record["not_run"] == []
    assert {"machine", "versions", "commit", "dtype", "settings", "clock"} <= record.keys()
    found = [(case["what"], case["method"], case["size"]) for case in record["cases"]]
    both = [("vanilla", 0), ("memorizing_transformer", 0), ("memorizing_transformer", 64)]
    assert found == [
        *(("step", *case) for case in both),
        *(("train_step", *case) for case in both),
        ("document", "memorizing_transformer", 10240),
    ]
    full = record["cases"][2]
    assert full["slots"] == 64 and full["state_bytes"] == 64 * (2 * 2 * 32 * 4 + 8)
    assert full["search"]["k"] == 4 and full["search"]["queries"] == 2 * 16
    assert full["forward"].keys() == full["both"].keys() >= {"ratio", "ratio_median", "peak_mb"}
    text = (folder / "bench.md").read_text()
    for words in (
        "A segment step",
        "Search alone",
        "A training step",
        "Evaluation of one document",
    ):
        assert words in printed and words in text
    assert printed.count("x vanilla") == 7


def test_another_shape_stays_and_the_own_one_is_replaced(make_settings, tmp_path):
    settings = make_settings(methods=["vanilla"], sizes=[0])
    other = bench(settings, print)
    folder = tmp_path / "bench"
    (folder / "nano-cpu.json").write_text(json.dumps(other | {"shape": "nano"}))
    bench(make_settings(methods=["transformer_xl"], sizes=[32]), print)
    text = (folder / "bench.md").read_text()
    assert "nano on cpu" in text and "micro on cpu" in text
    (row,) = json.loads((folder / "micro-cpu.json").read_text())["cases"]
    assert (row["method"], row["size"], row["slots"]) == ("transformer_xl", 32, 32)


def test_what_cannot_run_is_named(make_settings, tmp_path):
    said = []
    settings = make_settings(
        methods=["focused_transformer", "longformer"], sizes=[8, 2048], max_state_gb=0.002
    )
    record = bench(settings, said.append)
    reasons = {(case["method"], case["size"]): case["reason"] for case in record["not_run"]}
    assert record["cases"] == [] and record["failures"] == 0
    assert len(said) == len(reasons) == 4
    assert "raise trainer.batch_size" in reasons["focused_transformer", 8]
    assert "memory.size=8 is less than" in reasons["longformer", 8]
    assert "its memory takes 0.01 GB, more than max_state_gb=0.002" in said[3]
    text = (tmp_path / "bench" / "bench.md").read_text()
    assert "Not run" in text and "max_state_gb" in text


def test_errors_of_memory_are_named():
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    record = {"not_run": [], "failures": 0}
    assert attempt(record, fails, what="step") is None
    assert record["not_run"] == [{"what": "step", "reason": "not enough memory"}]
    assert record["failures"] == 0


def test_errors_of_the_program_are_named_and_fail(call, monkeypatch):
    def measure(self, case):
        raise RuntimeError("a mistake\nof ours")

    monkeypatch.setattr("unimem.bench.cases.Bench.measure", measure)
    printed, code = call(*SMALL, "methods=[vanilla]")
    assert "cannot run: failed: a mistake of ours" in printed
    assert code == "1 failed by an error of the program; see above"


def test_without_memory_there_is_one_size(make_settings):
    listed = list(cases(make_settings(methods=["vanilla", "unimix"], sizes=[0, 8], what="all")))
    assert [case.label for case in listed[:3]] == [
        "step vanilla, 0 slots", "step unimix, 0 slots", "step unimix, 8 slots",
    ]  # fmt: skip
    assert [case.what for case in listed[3:]] == ["train_step"] * 3 + ["document"]


def test_targets_are_the_next_tokens(make_settings):
    plain = Bench(settings=make_settings(), device=torch.device("cpu")).plain
    batch = training_batch(plain, 2, 3, seed=0)
    ids = batch.input_ids.flatten(1)
    assert ids.shape == (2, 48) and torch.equal(batch.targets.flatten(1)[:, :-1], ids[:, 1:])
    assert (batch.targets[:, -1, -1] == -100).all() and not batch.starts.any()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("shape=huge", "shape: no such shape; choose from nano, micro, tinyllama_layer"),
        ("what=[all,step]", "all stands alone; leave the others out"),
        ("size=3", "size is not a setting of the options chosen; did you mean sizes"),
        ("sizes=1,2", "sizes=1,2 gives several values"),
    ],
)
def test_mistakes_are_answered_in_a_line(call, tmp_path, argument, message):
    printed, code = call(argument)
    assert message in code and len(code.splitlines()) == 1 and not printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ["unimax"]}, "methods: unimax is not a method; choose from"),
        ({"methods": []}, "methods: List should have at least 1 item"),
        ({"sizes": [64, -1]}, "sizes.1: Input should be greater than or equal to 0 (got -1)"),
        ({"sizes": [64, 64]}, "sizes: 64 is named twice"),
        ({"repeats": 0}, "repeats: Input should be greater than 0 (got 0)"),
        ({"topk": 0}, "topk: Input should be greater than 0 (got 0)"),
        ({"dtype": "float16"}, "dtype: Input should be 'float32' or 'bfloat16' (got 'float16')"),
        ({"device": "tpu"}, "device: Input should be 'auto', 'cpu' or 'cuda' (got 'tpu')"),
        ({"backend": "fast"}, "backend: Input should be 'auto', 'reference',"),
        ({"keys": "no"}, "keys: choose clustered, random, or the folder of a finished run (got"),
        ({"what": "steps"}, "what.0: Input should be 'step', 'train_step', 'document', 'all'"),
        ({"what": "document", "shape": "tinyllama_layer"}, "shape=nano or micro, or what=step"),
        ({"what": "gpu"}, "what=gpu needs a CUDA GPU, but device=cpu"),
    ],
)
def test_settings_say_name_value_and_what_is_allowed(make_settings, values, message):
    with pytest.raises(ValidationError) as caught:
        make_settings(**values)
    (error,) = caught.value.errors()
    assert message in describe(cast(Any, error))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("what=gpu", "what=gpu needs a CUDA GPU, and torch finds none"),
        ("device=cuda", "device=cuda but torch finds no GPU; use auto or cpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_told(call, tmp_path, argument, message):
    printed, code = call(argument)
    assert message in code and not printed and not list(tmp_path.iterdir())


def test_help_has_examples(call):
    printed, code = call("--help")
    assert not code and "unimem-bench shape=nano 'what=[train_step,document]'" in printed
