"""The kernels of search_triton against scores written out in float64.

With a CUDA device they run as they are. Without, in Triton's interpreter, which a process chooses
before it imports Triton; other tests may have imported it, so these then run in one of their own.
"""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

from unimem.attention import search_triton  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="test_in_the_interpreter runs it"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled for the interpreter")


@compiles
@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(chosen):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen]
    done = subprocess.run([*command, __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@compiles
@pytest.mark.parametrize(
    ("dtype", "D", "k"),
    [
        (torch.bfloat16, 64, 4),
        pytest.param(torch.float16, 128, 64, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 160, 32, marks=pytest.mark.slow),
        pytest.param(torch.float32, 128, 32, marks=pytest.mark.slow),
    ],
)
def test_compiles_for_hopper(dtype, D, k, monkeypatch, tmp_path):
    kernel, compiled = search_triton._pass, []

    class Compile:
        def __getitem__(self, grid):
            return lambda *a, **options: compiled.append(kernel.warmup(*a, grid=grid, **options))

    hopper = SimpleNamespace(
        get_current_device=lambda: "hopper",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", hopper)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(search_triton, "_pass", Compile())
    keys = torch.zeros(1, 2, 300, D, dtype=dtype)
    open = keys[..., 0] == 0
    search_triton._two_passes((keys[:, :, :3], keys, open, open[:, :1, None, :20]), k)
    assert len(compiled) == 2
    for made in compiled:
        assert made.metadata.shared <= 227 * 2**10  # bytes of a multiprocessor
        assert ("wgmma" in made.asm["ptx"]) == (dtype != torch.float32)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape).to(DEVICE, dtype)


def marks(*shape, share=0.3):
    return (torch.rand(shape) < share).to(DEVICE)


def check(query, keys, k, open, taken=None):
    """Compare a search with the float64 scores, and give these."""
    (B, H, T, _), (G, M) = query.shape, keys.shape[1:3]
    index, logits = search_triton.search(query, keys, k, open, taken)
    assert index.shape == logits.shape == (B, H, T, min(k, M))
    assert (index.dtype, logits.dtype) == (torch.int64, torch.float32)
    scores = query.double() @ keys.double().repeat_interleave(H // G, 1).mT
    scores.nan_to_num_(-torch.inf)
    scores.masked_fill_(~open.expand(B, G, M).repeat_interleave(H // G, 1)[:, :, None], -torch.inf)
    if taken is not None:
        scores[..., M - taken.shape[-1] :].masked_fill_(taken, -torch.inf)
    best = scores.topk(min(k, M), -1)
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(logits.sort(-1, True).values.double(), best.values, **close)
    chosen = logits > -torch.inf
    torch.testing.assert_close(scores.gather(-1, index)[chosen], logits[chosen].double(), **close)
    assert not index[~chosen].any()
    picks = torch.zeros_like(scores).scatter_add(-1, index, chosen.double())
    assert picks.max() <= 1
    # but for ties at the last place these are the slots
    assert (picks == 1)[scores > best.values[..., -1:] + 1e-4].all()
    return scores


@pytest.fixture
def two_passes_only(monkeypatch):
    """Let no query be searched again, which would hide that a pass went wrong."""
    monkeypatch.setattr(search_triton, "_written_out", lambda *_: pytest.fail("searched again"))


@runs
@pytest.mark.usefixtures("two_passes_only")
@pytest.mark.parametrize(
    ("B", "H", "G", "T", "M", "D", "W", "k", "dtype"),
    [
        (1, 1, 1, 3, 128, 16, 0, 2, torch.float32),  # whole tiles
        (2, 4, 2, 5, 150, 24, 33, 3, torch.float32),  # nothing is whole
        (1, 2, 1, 17, 70, 8, 70, 1, torch.float32),  # all slots are new, one is wanted
        (1, 2, 2, 2, 9, 64, 4, 12, torch.float32),  # fewer slots than wanted
        (1, 4, 1, 2, 300, 40, 20, 20, torch.bfloat16),
        (1, 2, 1, 3, 200, 160, 0, 3, torch.float16),  # heads in two pieces
        pytest.param(1, 2, 1, 5, 700, 48, 90, 64, torch.float32, marks=pytest.mark.slow),
        pytest.param(1, 8, 2, 33, 600, 64, 130, 32, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(2, 4, 1, 33, 300, 80, 65, 8, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_finds_the_largest(B, H, G, T, M, D, W, k, dtype):
    torch.manual_seed(0)
    query, keys = draw(B, H, T, D, dtype=dtype), draw(B, G, M, D, dtype=dtype)
    check(query, keys, k, marks(B, G, M, share=0.8), marks(B, H, T, W))


@runs
@pytest.mark.usefixtures("two_passes_only")
def test_masks_may_be_shared_and_no_layout_is_presumed():
    torch.manual_seed(0)
    query, open = draw(2, 5, 2, 24).transpose(1, 2), marks(128, 2, 2, share=0.8).permute(1, 2, 0)
    keys = torch.full((2, 2, 200, 30), torch.nan, device=DEVICE)[:, :, 37:165, 3:27]
    check(query, keys.copy_(draw(2, 2, 128, 24)), 4, open, marks(2, 1, 64, 5).mT)
    check(draw(1, 2, 24, 5).mT, draw(1, 2, 24, 128).mT, 4, open[:1, :1])


@runs
@pytest.mark.usefixtures("two_passes_only")
def test_what_is_barred_is_not_found():
    torch.manual_seed(0)
    query, keys = draw(1, 2, 3, 16), draw(1, 1, 130, 16)
    open, taken = marks(1, 1, 130, share=1), marks(1, 2, 3, 128, share=1)  # two slots are left
    assert (check(query, keys, 4, open, taken) > -torch.inf).sum() == 2 * 2 * 3
    check(query, keys, 4, torch.zeros_like(open), taken)
    keys[:, :, 1] = torch.nan
    assert (check(query, keys, 4, open, taken) > -torch.inf).sum() == 2 * 3


@runs
@pytest.mark.slow
@pytest.mark.usefixtures("two_passes_only")
def test_open_slots_at_equal_distances_are_of_many_classes():
    torch.manual_seed(0)
    open = torch.arange(64 * 100, device=DEVICE) % 64 == 5
    check(draw(1, 1, 2, 16), draw(1, 1, len(open), 16), 4, open[None, None])


@runs
def test_equal_keys_are_searched_again(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(search_triton, "PIECE", 200)  # one query at once
    spy = Mock(wraps=search_triton._written_out)
    monkeypatch.setattr(search_triton, "_written_out", spy)
    query, keys = draw(1, 2, 3, 16), draw(1, 1, 150, 16)
    keys[:, :, 20:] = keys[:, :, :1]  # which some of the queries like best
    check(query, keys, 4, marks(1, 1, 150, share=0.8), marks(1, 2, 3, 40))
    assert not spy.call_args.args[1].all()


@runs
@pytest.mark.parametrize(("k", "dtype"), [(65, torch.float32), (4, torch.float64)])
def test_what_the_passes_do_not_take_is_written_out(k, dtype):
    torch.manual_seed(0)
    query, keys = draw(2, 4, 3, 24, dtype=dtype), draw(2, 2, 90, 24, dtype=dtype)
    check(query, keys, k, marks(2, 1, 90, share=0.8), marks(2, 4, 3, 20))


@pytest.mark.parametrize(("k", "M"), [(0, 5), (3, 0)])
def test_nothing_wanted_or_there(k, M):
    query, keys = torch.randn(2, 4, 3, 8), torch.randn(2, 2, M, 8)
    index, logits = search_triton.search(query, keys, k, torch.ones(2, 1, M).bool(), None)
    assert index.shape == logits.shape == (2, 4, 3, 0)


def test_refusals():
    query, keys, open = torch.zeros(1, 3, 2, 8), torch.zeros(1, 2, 5, 8), torch.ones(1, 1, 5).bool()
    with pytest.raises(ValueError, match="float32 and keys are torch.bfloat16; give one float"):
        search_triton.search(query, keys.bfloat16(), 1, open, None)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key-value heads evenly"):
        search_triton.search(query, keys, 1, open, None)
    with pytest.raises(ValueError, match="of the newest 7 slots, but there are 5"):
        search_triton.search(query, keys[:, :1], 1, open, torch.zeros(1, 1, 2, 7).bool())
