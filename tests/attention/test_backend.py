"""Which kernel is taken, and what is answered where none is; see test_fast.py for the numbers."""

import re
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from helpers.models import make_memory, make_model, tokens
from helpers.small_methods import small_memory

from unimem.attention import backend, fast
from unimem.attention.kernels.cpu import CpuFlash
from unimem.memory.bank import MemoryBank
from unimem.model import layer as attention
from unimem.model.attach import attach
from unimem.model.segments import read, run

CPU, IDS = torch.device("cpu"), tokens(2, 22)
WINDOW = {"reading": {"position": {"window": 6}}}
AWAY = r"is \d\.\de-\d\d away from the reference for torch.float32 on cpu"


@pytest.fixture(autouse=True)
def _nothing_is_known():
    backend._working.cache_clear()
    backend._say.cache_clear()
    yield
    backend._working.cache_clear()
    backend._say.cache_clear()


def chosen(name, device=CPU, dtype=torch.float32, **choices):
    plan = make_memory(4, **(WINDOW | choices)).plan(3)
    return backend.choose(name, plan, device, dtype)


def reading(name, context=None, **choices):
    """Read with a backend; give the logits, and how often the fast form ran."""
    model = attach(make_model(), make_memory(4, **(WINDOW | choices)), name)
    with (
        mock.patch.object(attention, "attend_fast", wraps=fast.attend_fast) as calls,
        context or torch.no_grad(),
    ):
        return read(model, IDS).logits, calls.call_count


class Louder(CpuFlash):
    def forward(self, *args):
        out, lse = super().forward(*args)
        return out * 1.01, lse


class Heavier(CpuFlash):
    """Right alone, but its part of a softmax weighs too much."""

    def forward(self, query, key, *args):
        out, lse = super().forward(query, key, *args)
        return out, lse + 0.01 * (key.shape[2] > 9)


class Steeper(CpuFlash):
    def backward(self, *args):
        query, key, value = super().backward(*args)
        return query, key * 1.01, value


class Broken(CpuFlash):
    def forward(self, *args):
        raise RuntimeError("no such operator\nand more lines")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (Louder, AWAY),
        (Heavier, AWAY),
        (Steeper, AWAY),
        (Broken, "fails for torch.float32 on cpu: no such operator"),
    ],
)
def test_a_wrong_kernel_is_refused_and_named(wrong, why, monkeypatch, caplog):
    monkeypatch.setattr(backend, "_make", lambda name, device: wrong())
    with caplog.at_level("INFO", "unimem"):
        logits, calls = reading("auto")
    (said,) = caplog.messages
    assert re.fullmatch(f"attention.backend=auto: reference; sdpa {why}", said)
    with pytest.raises(backend.BackendError, match=f"attention.backend=sdpa {why}; set attention"):
        chosen("sdpa")
    assert not calls
    assert torch.equal(logits, reading("reference")[0])


def test_a_package_that_is_missing_is_named(monkeypatch):
    error = ImportError("No module named 'flash_attn'")
    monkeypatch.setattr(backend, "_make", mock.Mock(side_effect=error))
    with pytest.raises(backend.BackendError, match="flash is not installed: No module.*flash_attn"):
        chosen("flash")
    assert chosen("auto") is None


def test_a_device_without_kernels_is_named(caplog):
    with caplog.at_level("INFO", "unimem"):
        assert chosen("auto", torch.device("meta")) is None
    (said,) = caplog.messages
    assert said == "attention.backend=auto: reference; there is no kernel for meta"


def test_a_layer_that_only_the_reference_computes_is_named():
    plan = small_memory("h2o").plan(3)
    why = "memory.management=score_evict asks how much attention each slot gets; set attention"
    with pytest.raises(backend.BackendError, match=f"=sdpa cannot compute layer [012]: {why}"):
        backend.choose("sdpa", plan, CPU, torch.float32)
    assert backend.choose("reference", plan, CPU, torch.float32) is None


def test_nothing_is_asked_of_a_kernel_where_no_layer_has_memory():
    plan = small_memory("rmt").plan(3)
    assert backend.choose("flash", plan, CPU, torch.float32) is None
    with pytest.raises(backend.BackendError, match="flash needs a CUDA GPU, and the model is on"):
        reading("flash")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_auto_takes_the_kernel_of_the_cpu(dtype):
    assert type(chosen("auto", dtype=dtype)) is type(chosen("sdpa", dtype=dtype)) is CpuFlash


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        nullcontext,
    ],
    ids=["no_grad", "inference_mode", "autocast", "training"],
)
def test_whoever_reads_first_does_not_spoil_the_choice(context):
    assert reading("auto", context())[1]
    for dtype in (torch.float32, torch.bfloat16):
        assert isinstance(chosen("auto", dtype=dtype), CpuFlash)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_kernel_that_was_first_asked_without_gradient_trains(mode):
    reading("auto", mode())
    model = attach(make_model(), make_memory(4, **WINDOW))
    read(model, IDS, gradient=True).nll[:, 1:].mean().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_who_watches_is_shown_the_reference():
    """Only it knows the share of each slot; the numbers are the same."""
    attn_mask, outs = [], []
    for observer in (lambda layer, *_: attn_mask.append(layer), None):
        model = attach(make_model(), make_memory(4, **WINDOW))
        ids = IDS[:, :20].view(2, 5, 4)
        whole = {"starts": torch.zeros(2, 5).bool(), "lengths": torch.full((2, 5), 4)}
        with (
            torch.no_grad(),
            mock.patch.object(attention, "attend_fast", wraps=fast.attend_fast) as calls,
        ):
            outs.append(run(model, MemoryBank.empty(2), ids, observer=observer, **whole)[0])
        assert (calls.call_count == 0) == (observer is not None)
    assert sorted(attn_mask) == [layer for layer in range(3) for _ in range(4)]
    assert (outs[0] - outs[1]).abs().max() <= 5e-6 * outs[0].abs().max()


@pytest.mark.parametrize(
    ("positions", "position", "size"),
    [
        ("true", {"window": 6}, 30),
        ("zero", {"window": 4, "num_global": 2}, 30),
        ("capped", {"window": 8}, 30),
        ("zero", {"window": 4}, 1),
    ],
    ids=["window", "globals", "capped", "one slot"],
)
def test_flex_reads_windows_as_the_reference_does(positions, position, size):
    """In bands, which the kernel of the CPU does not know, and with a row that begins afresh."""
    outs, starts = [], torch.zeros(2, 5, dtype=torch.bool)
    starts[1, 2] = True
    for name in ("flex", "reference"):
        memory = make_memory(
            4,
            reading={"position": position},
            positions=positions,
            management={"fifo": {"size": size}},
        )
        model, ids = attach(make_model(), memory, name), IDS[:, :20].view(2, 5, 4)
        with torch.no_grad():
            lengths = torch.full((2, 5), 4)
            outs.append(run(model, MemoryBank.empty(2), ids, starts=starts, lengths=lengths)[0])
    assert (outs[0] - outs[1]).abs().max() <= 5e-6 * outs[1].abs().max()
