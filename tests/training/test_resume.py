"""A run that was stopped and continued is the run that was not, bit for bit."""

import random

import numpy as np
import pytest
import torch
from training.conftest import XL, Runs, metrics, same_weights

from unimem.training.resume import circumstances, exactness, random_state, set_random_state

RMT = ("method=rmt", "memory.num_soft_tokens=3")
MEMTRANS = ("method=memorizing_transformer", "memory.injection.layers=[1]", "memory.topk=2")
H2O = ("method=h2o", "memory.size=7", "memory.recent=3")
INFINI = ("method=infini_attention",)
GATED = (*MEMTRANS, "memory.fusion=gated", "memory.bptt_segments=2")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        pytest.param(RMT, (), id="soft tokens"),
        pytest.param(H2O, (), id="notes, heads with tokens of their own"),
        pytest.param(INFINI, (), id="matrix", marks=pytest.mark.slow),
        pytest.param(XL, (), id="transformer_xl", marks=pytest.mark.slow),
        pytest.param(MEMTRANS, (), id="top-k", marks=pytest.mark.slow),
        pytest.param(
            GATED,
            ("trainer.gradient_checkpointing=true",),
            id="gated, checkpointing",
            marks=pytest.mark.slow,
        ),
        pytest.param(XL, ("trainer.accumulate=2",), id="accumulate=2", marks=pytest.mark.slow),
    ],
)
def test_continued_from_any_step_equals_uninterrupted(runs, tmp_path, method, more):
    whole = runs.start("name=a", *more, method=method)
    assert [line["step"] for line in metrics(whole)] == list(range(1, 9))
    # A document is five segments long: most of these steps end in the middle of one.
    for step in (1, 3, 6, 8):
        copies = Runs(tmp_path / f"copy-{step}")
        copies.copy_at(whole, step)
        continued = copies.start("name=a", "resume=true", *more, method=method)
        assert metrics(continued) == metrics(whole)
        assert same_weights(continued, whole)


def test_random_state_comes_back_from_a_file(tmp_path):
    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()] + (
            torch.rand(3).tolist()
        )

    draw()
    torch.save(random_state(), tmp_path / "state")
    drawn = draw()
    assert draw() != drawn
    set_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draw() == drawn


def test_what_changed_the_last_bits_is_named():
    before = {"threads": 1, "cpu": "AVX2"}
    assert exactness(before, before) == "exact resume: yes"
    changed = exactness(before, {"threads": 2, "cpu": "AVX2"})
    assert changed == "exact resume: no, because threads 1 -> 2"


def test_a_gpu_repeats_its_bits_only_if_told_to():
    now = {"gpu": "H100"}
    assert exactness(now, now, on_gpu=True).startswith("exact resume: no, because gradients")
    torch.use_deterministic_algorithms(True)
    try:
        assert exactness(now, now, on_gpu=True) == "exact resume: yes"
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_code_or_library_switches_are_named(monkeypatch):
    before = circumstances()
    assert exactness(before, circumstances()) == "exact resume: yes"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    changed = exactness(before | {"code": "0123"}, circumstances())
    assert changed.startswith("exact resume: no, because code 0123 -> ")
    assert changed.endswith("$MKL_CBWR None -> COMPATIBLE")
