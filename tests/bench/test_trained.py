"""Keys of a run: what its model computes, before rotary embedding."""

import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from unimem.bench.cases import key_source
from unimem.bench.inputs import Recorded
from unimem.bench.run import bench
from unimem.config import validate
from unimem.data.build import build_corpus
from unimem.model.attach import attach
from unimem.model.segments import read
from unimem.runs.records import read_result

OVERRIDES = [
    "memory.injection.layers=[1,2]", "memory.segment_length=16", "memory.topk=4", "model=tiny",
    "data=markov", "data.length=72", "data.validation_documents=4", "trainer.max_steps=2",
    "evaluation.controls=false", "logger=none", "name=run",
]  # fmt: skip


def remembered(folder):
    """The keys [1, G, 64, D] that the middle layer remembers of the first held-out document."""
    config = validate(OmegaConf.create(read_result(folder)["config"]))
    model = attach(AutoModelForCausalLM.from_pretrained(folder / "model"), config.memory).eval()
    ids = torch.from_numpy(build_corpus(config.data).validation.ids(0)[:64])[None]
    with torch.no_grad():
        return read(model, ids, segments_per_call=1).bank.layers[2].keys


@pytest.mark.slow
def test_keys_of_a_run_are_those_that_its_memory_holds(tmp_path, make_settings):
    command = [sys.executable, "-m", "unimem.cli.train", *OVERRIDES, f"output={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    folder = tmp_path / "runs" / "run"
    source = key_source(str(folder))
    assert isinstance(source, Recorded)
    tokens = 4 * 64  # whole segments of each document
    assert source.keys.shape == (3, tokens, 16) and source.queries.shape == (6, tokens, 16)
    assert torch.equal(source.keys[None, :, :64], remembered(folder))
    record = bench(make_settings(methods=["memorizing_transformer"], keys=str(folder)), print)
    assert record["not_run"] == [] and record["cases"][1]["slots"] == 64
