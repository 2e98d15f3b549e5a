"""What cannot fit is refused before it runs, and what is said of it is no more than it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import make_memory, make_model

from unimem.config import compose
from unimem.model.attach import attach
from unimem.training.fits import memory_of, need, require_fit
from unimem.training.prepare import _beyond_documents

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WHOLE = {"device": CPU, "dtype": torch.float32, "there": 10**9}


def test_parts_by_hand():
    model = attach(make_model(), make_memory(8))
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    step = {"longest": 40, "rows": 2, "segments": 3, "dtype": torch.float32, "device": CPU}
    found = need(model, **step, trains=True)
    assert found.tokens == 8 and found.weights == 4 * weights
    tokens, each = 2 * 3 * 8, 4 * (6 * 32 + 4 * 48)
    assert found.activations == 3 * each * tokens
    assert found.logits == tokens * 61 * 8
    assert found.attention == 2 * 8 * 8 + 3 * 4 * 8 * 8
    assert need(model, **(step | {"device": GPU}), trains=True).attention == 2 * 8 * 8
    assert need(model, **step, trains=False).attention == 2 * 8 * 8 + 4 * 8 * 8
    # 3 layers of 40 slots: keys and values of 2 heads of 8 numbers, and a place
    assert found.state == 2 * 3 * 40 * (2 * 2 * 8 * 4 + 8)
    assert found.total == sum(
        (found.weights, found.activations, found.logits, found.attention, found.state)
    )
    assert need(model, **step, trains=False).weights == weights
    checked = need(model, **step, trains=True, checkpointing=True)
    assert checked.activations == tokens * (3 * 32 * 4 + each)
    short = need(model, **(step | {"longest": 5}), trains=True)
    assert short.tokens == 5 and short.logits == 2 * 3 * 5 * 61 * 8


def test_attention_by_reference_keeps_its_logits():
    model = attach(make_model(), make_memory(8, management={"score_evict": {"size": 7}}))
    step = {"longest": 40, "rows": 2, "segments": 3, "dtype": torch.float32, "device": CPU}
    one = 8 * 2 * 4 * 8 * (8 + 7)  # of a layer and segment
    assert need(model, **step, trains=True).attention == 128 + 3 * 3 * one
    assert need(model, **step, trains=True, checkpointing=True).attention == 128 + 3 * one
    assert need(model, **step, trains=False).attention == 128 + one


def test_what_cannot_fit_is_refused_by_name():
    config = compose("memory.segment_length=100000", "trainer.batch_size=3")
    model = attach(make_model(), make_memory(100000))
    with pytest.raises(ValueError) as refused:
        require_fit(config, model, trained=[200_000, 9], held_out=[9], **WHOLE)
    text = str(refused.value)
    assert "a training step needs" in text and "this machine, for each process, has 1 GB" in text
    assert "memory.segment_length=100000 makes segments of 100,000 tokens" in text
    assert "trainer.batch_size=3 rows of" in text and "trainer.gradient_checkpointing=true" in text
    with pytest.raises(ValueError, match=r"evaluation needs .*evaluation.batch_size=\d+ rows"):
        require_fit(config, model, trained=[], held_out=[200_000], **WHOLE)
    # what counts is the longest document, not the segment that nobody fills
    require_fit(config, model, trained=[512], held_out=[512], **WHOLE)


def test_processes_share_the_machine_and_fsdp_the_weights():
    config = compose("trainer.strategy=fsdp", "trainer.accelerator=cpu")
    model = attach(make_model(), make_memory(8))
    found = need(
        model, longest=40, rows=config.trainer.batch_size, segments=config.segments_per_step(),
        dtype=torch.float32, device=CPU, trains=True,
    )  # fmt: skip
    two = WHOLE | {"there": 2 * (found.total - found.weights // 2)}
    require_fit(config, model, trained=[40], held_out=[], processes=2, **two)
    plain = compose("trainer.strategy=ddp", "trainer.accelerator=cpu")
    with pytest.raises(ValueError, match="a training step needs"):
        require_fit(plain, model, trained=[40], held_out=[], processes=2, **two)


def test_this_machine_has_memory():
    assert 2**28 < memory_of(CPU) < 2**50


STEP = """
import re, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers.models import make_memory, make_model
from unimem import attach, read
from unimem.config import compose
from unimem.data.stream import SegmentBatch
from unimem.training.fits import need
from unimem.training.module import LitUniMem

def peak():
    # not getrusage, which begins with what the parent process held
    found = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024

def step(length):
    shape = (2, 2, length)
    ids = torch.ones(shape, dtype=torch.long)
    one = torch.zeros(2, 2, dtype=torch.long)
    LitUniMem(model, compose().trainer).training_step(
        SegmentBatch(ids, ids, one.bool(), one + length, one, one), 0)["loss"].backward()

torch.set_num_threads(1)
model = attach(make_model(), make_memory({length}, **{memory})).train()
step(16)
before = peak()
step({length})
found = need(model, longest={length} * 2, rows=2, segments=2, dtype=torch.float32,
    device=torch.device('cpu'), trains=True)
print((found.total - found.weights) / (peak() - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "memory"),
    [
        (2500, {}),
        (500, {"management": {"score_evict": {"size": 700}}}),
        (2500, {"management": {"fifo": {"size": 8}}, "injection": {"layers": [1]}}),
    ],
)
def test_a_step_takes_at_least_what_is_said(length, memory):
    """And not so much more that nothing would ever be refused."""
    script = STEP.format(tests=str(Path(__file__).parents[1]), length=length, memory=memory)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert 0.05 < float(done.stdout.split()[-1]) < 1


class Sized:
    """Documents of which only the lengths are looked at."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def length(self, i):
        return self.lengths[i]


def test_gradient_that_reaches_beyond_every_document_is_told():
    config = compose("memory.bptt_segments=1000", "memory.segment_length=64")
    line = _beyond_documents(config, Sized(512, 100))
    assert line is not None and "has 8 segments, so gradient reaches 7 back at most" in line
    assert "reads 1,001 segments of each row" in line and "set memory.bptt_segments=7" in line
    assert _beyond_documents(config, Sized(64)) is None
    fitting = compose("memory.bptt_segments=7", "memory.segment_length=64")
    assert _beyond_documents(fitting, Sized(512, 100)) is None
