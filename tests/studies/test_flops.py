"""What is said of a run before it starts is what it turns out to be."""

import json

import pytest
import torch
from studies.conftest import BASE, TINY

from unimem.data.build import build_corpus
from unimem.data.stream import SegmentStream
from unimem.model.attach import attach
from unimem.model.load import load_model
from unimem.studies.cells import Cell, SweepOptions, make_cell, parse, read_options
from unimem.studies.estimate.flops import Work, flops_per_token, num_devices, work_of
from unimem.studies.estimate.model_size import Shape, shape_of
from unimem.training.footprint import num_parameters, state_bytes_per_row

KINDS = {
    "window": [],
    "gates": ["memory.fusion=gated"],
    "tied": ["model.tie_embeddings=true"],
    "soft": ["method=unimix", "memory.num_soft_tokens=3", "memory.injection.layers=[1]"],
    "budgets": ["injection_layer=null", "memory.size=[4,30]"],
    "unbounded": ["memory.management=unbounded", "~memory.size"],
    "none": ["method=vanilla", "~memory.size", "~memory.window"],
}


def cell(*overrides: str, base: Cell | None = None) -> Cell:
    # An override that is taken back was not there.
    gone = [o[1:] for o in overrides if o.startswith("~")]
    kept = [o for o in (*TINY, *overrides) if not o.startswith("~") and o.split("=")[0] not in gone]
    return make_cell("a", kept, read_options(SweepOptions, "sweep", parse([])), base)


def work(*overrides: str, gpus: int = 0) -> Work:
    found = work_of(cell(*overrides), gpus)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_memory_state_are_counted_exactly(kind):
    made = cell(*KINDS[kind], "evaluation.documents=1", "trainer.batch_size=1")
    corpus = build_corpus(made.config.data)
    model = attach(load_model(made.config.model, corpus.vocab_size, 0), made.config.memory)
    found = work_of(made, 0)
    assert found is not None
    assert found.parameters == num_parameters(model)
    assert found.weight_bytes == 16 * num_parameters(model)
    assert found.state_bytes == state_bytes_per_row(model, 40, torch.float32)


def test_a_model_of_a_folder_is_counted_by_its_shape(tmp_path):
    first = cell("method=vanilla", "~memory.size", "~memory.window")
    shape = shape_of(first, 8)
    load_model(first.config.model, 8, 0).save_pretrained(tmp_path)
    other = [o for o in TINY if not o.startswith("model")]
    names = ["model=hf", f"model.name={tmp_path}", "model.tokenizer=bpe"]
    made = make_cell("a", [*other, *names], read_options(SweepOptions, "sweep", parse([])))
    assert shape_of(made, 8) == shape
    based = make_cell("a", other, read_options(SweepOptions, "sweep", parse([])), first)
    assert shape_of(based, 8) == shape


@pytest.mark.parametrize(
    ("name", "width", "layers"), [("tinyllama", 2048, 22), ("llama2_7b", 4096, 32)]
)
def test_a_model_of_the_hub_is_guessed_from_its_parameters(name, width, layers):
    other = [o for o in TINY if not o.startswith("model")]
    made = make_cell("a", [*other, f"model={name}"], read_options(SweepOptions, "sweep", parse([])))
    shape = shape_of(made, 0)
    assert shape is not None and shape.layers == layers
    assert shape.width == pytest.approx(width, rel=0.03)


def test_nothing_is_said_of_a_model_of_unknown_size():
    other = [o for o in TINY if not o.startswith("model")]
    options = read_options(SweepOptions, "sweep", parse([]))
    made = make_cell("a", [*other, "model=hf", "model.name=some/model"], options)
    assert work_of(made, 0) is None
    known = make_cell(
        "a",
        [
            *other,
            "model=hf",
            "model.name=some/model",
            "model.num_layers=2",
            "model.parameters=9000",
        ],
        options,
    )
    assert known.signature == make_cell(
        "a", [*other, "model=hf", "model.name=some/model", "model.num_layers=2"], options
    ).signature, "an estimate changes no number"  # fmt: skip
    found = work_of(known, 0)
    assert found is not None and found.parameters == 9000


def test_tokens_are_those_that_are_trained_on_and_read():
    found = work("trainer.batch_size=3", "trainer.accumulate=2", "trainer.segments_per_step=2")
    assert found.trained == 8 * 3 * 2 * 2 * 8
    # 3 documents of 40 tokens, with their own memory, without, and with another's
    assert found.read == 3 * 3 * 40
    assert work("evaluation.controls=false").read == 3 * 40
    assert work("evaluation.batch_size=1").read == 2 * 3 * 40
    assert work("evaluation.max_tokens=10", "evaluation.controls=false").read == 30
    assert work(*KINDS["none"]).read == 3 * 40
    untrained = work("trainer.max_steps=0")
    assert (untrained.trained, untrained.training) == (0, 0)
    assert untrained.weight_bytes == 4 * untrained.parameters


def test_an_epoch_is_every_token_once():
    made = cell("trainer.max_steps=null")
    corpus = build_corpus(made.config.data)
    stream = SegmentStream(
        corpus.train,
        batch_size=2,
        segment_length=8,
        segments_per_step=1,
        seed=0,
        steps=None,
        shuffle=True,
    )
    found = work_of(made, 0)
    assert found is not None
    assert found.trained == sum(int(batch.lengths.sum()) for batch in stream)


def test_flops_by_hand():
    config = cell("memory.size=8", "memory.window=8").config
    shape = Shape(
        parameters=1000, layers=2, heads=4, kv_heads=2, width=16, query_width=16, key_width=8
    )
    # the first of four segments of 8 tokens sees no slot, the others 8
    slots = (0 + 8 + 8 + 8) / 4
    assert flops_per_token(config, shape, 32) == 2 * 1000 + 2 * 4 * 16 * slots
    soft = cell(*KINDS["soft"], "memory.size=1", "memory.window=1").config
    tokens = 1 + (1 + 1) * 3 / 8
    slots = (0 + 1 + 1 + 1) / 4
    expected = 2 * (1000 + 3 * 16) * tokens + 4 * 16 * slots
    assert flops_per_token(soft, shape, 32) == pytest.approx(expected)


def test_devices_share_rows_and_with_fsdp_weights():
    one = work("trainer.accelerator=gpu", "trainer.devices=1", gpus=8)
    two = work("trainer.accelerator=gpu", "trainer.devices=2", gpus=8)
    every = work("trainer.accelerator=gpu", "trainer.devices=auto", "trainer.strategy=fsdp", gpus=8)
    assert (two.trained, every.trained) == (2 * one.trained, 8 * one.trained)
    assert two.weight_bytes == one.weight_bytes == 8 * every.weight_bytes
    assert work("trainer.precision=bf16-true").weight_bytes == one.weight_bytes / 2
    assert one.state_bytes < work(gpus=0).state_bytes, "bfloat16 on a GPU"
    settings = cell("trainer.devices=auto", "trainer.accelerator=cpu").config.trainer
    assert num_devices(settings, gpus=8) == 1


def test_without_the_documents_their_number_is_guessed(tmp_path):
    options = read_options(SweepOptions, "sweep", parse(["dry_run=true"]))
    data = ["data=pg19", f"data.path={tmp_path}/none", "data.train_documents=10"]
    more = ["model=tinyllama", "data.validation_documents=4", "evaluation.max_tokens=3000"]
    other = ["injection_layer=0", "trainer.max_steps=null", "evaluation.documents=null"]
    found = work_of(make_cell("a", [*data, *more, *other], options), 0)
    assert found is not None
    assert (found.trained, found.read) == (10 * 100_000, 3 * 4 * 3000)


def test_nothing_of_this_is_changed_by_a_base():
    first = make_cell(
        "a", ["method=vanilla", *BASE], read_options(SweepOptions, "sweep", parse([]))
    )
    own = [o for o in TINY if not o.startswith("model")]
    made = make_cell("a", own, read_options(SweepOptions, "sweep", parse([])), first)
    assert work_of(made, 0) == work()
    assert json.loads(made.config.model_dump_json())["model"]["kind"] == "pretrained"
