"""What is measured on a GPU, made small and on the CPU: that it runs, and the arithmetic."""

import math
from dataclasses import replace

import pytest
import torch

from unimem.bench import backends
from unimem.bench.backends import compare_backends
from unimem.bench.bank import filled_bank
from unimem.bench.gpu import TABLES, Scale, keep, measurements
from unimem.bench.inputs import Gaussian
from unimem.bench.record import new_record
from unimem.bench.report import as_lines, tables
from unimem.bench.roofline import measure_retrieval, peak_of
from unimem.bench.shapes import SHAPES, configured
from unimem.bench.tinyllama import flops_per_token
from unimem.model.attach import attach
from unimem.model.load import load_model

CPU = torch.device("cpu")
SHAPE = replace(SHAPES["micro"], vocabulary=64)
SCALE = Scale(shape=SHAPE, layer=SHAPE, most_rows=2, slots=(64,), documents=(32, 48), compared=64)


def test_devices_are_known_by_a_part_of_their_name():
    known = peak_of("NVIDIA H100 80GB HBM3")
    assert known is not None and known.flops == 989e12
    assert peak_of("Some other GPU") is None


def test_flops_of_a_token():
    model = load_model(SHAPE.model(), 64, 0)
    weights = sum(p.numel() for p in model.parameters())
    assert flops_per_token(model, 512) == 6 * weights + 12 * 6 * 64 * 512


def test_floors_of_search_are_not_known_here(make_settings):
    first, second = measure_retrieval(make_settings(), SHAPE, 64, CPU)
    assert (first["k"], second["k"]) == (32, 4)
    assert first["floor of FLOPs ms"] is first["search / floor"] is None


def test_gradients_of_the_reference_and_of_what_is_there_agree(make_settings, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", ("auto", "reference", "flash"))
    rows = compare_backends(make_settings(), SHAPE, "transformer_xl", 64, CPU)
    assert [row["backend"] for row in rows] == ["auto", "reference", "flash"] * 2
    assert rows[1]["error"] == 0 and rows[0]["error"] < 1e-4
    for row in rows:
        assert (row["error"] is None) == (row["reason"] is not None)
        assert row["error"] is None or row["error"] < (1e-4 if row["dtype"] == "float32" else 0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_everything_runs_small(make_settings):
    settings = make_settings(methods=["unimix"])
    record = new_record(settings, CPU, *TABLES)
    for name, label, measure in measurements(settings, SCALE, CPU):
        keep(record, name, label, measure)
    assert record["not_run"] == []
    assert tables(record).keys() == set(TABLES)
    assert [row["rows"] for row in record["training"]] == [2] * 4
    assert all(math.isfinite(row["tokens/s"]) for row in record["evaluation"])
    assert "Training TinyLLaMA-1.1B" in as_lines(record)


def test_rows_remember_in_the_type_that_is_computed_in(make_settings):
    config = configured("memorizing_transformer", SHAPE, size=32, segment_length=16)
    model = attach(load_model(SHAPE.model(), 64, 0), config.memory)
    bank = filled_bank(model, Gaussian(), rows=1, size=32, seed=0, dtype=torch.bfloat16)
    assert bank.layers[3].keys.dtype == bank.layers[3].values.dtype == torch.bfloat16
