"""Memory that runs out is told in a line, and what was done before it is kept."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from unimem.config import compose
from unimem.studies.run.runner import reason
from unimem.training.out_of_memory import (
    OUT_OF_MEMORY,
    OutOfMemoryError,
    evaluation_knobs,
    explain_oom,
    in_words,
    is_oom,
    training_knobs,
)


def raised(action) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the library raises
        action()
    return caught.value


REAL = {
    "torch": lambda: torch.empty(2**60),
    "numpy": lambda: np.empty(2**52),
    "pyarrow": lambda: pa.allocate_buffer(2**62),
    "python": lambda: bytearray(2**62),
}


@pytest.mark.parametrize("library", REAL)
def test_what_libraries_raise_is_known(library):
    error = raised(REAL[library])
    assert is_oom(error)
    asked = library in ("torch", "numpy", "pyarrow")
    assert ("more were asked for" in in_words(error)) == asked
    assert "are free on this machine" in in_words(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_what_else_is_of_memory(error):
    assert is_oom(error) and in_words(error)
    wrapped = ValueError("model cannot be loaded")
    wrapped.__cause__ = error
    assert is_oom(wrapped)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError(errno.ENOSPC, "")]
)
def test_other_errors_stay_what_they_are(error):
    assert not is_oom(error)
    with pytest.raises(type(error)), explain_oom("training", list, "go on"):
        raise error


def test_the_line_names_the_inner_phase_what_was_asked_for_and_the_settings():
    config = compose("model=tiny", "data=markov", "injection_layer=2", "memory.size=32")
    with (
        pytest.raises(OutOfMemoryError) as told,
        explain_oom("loading", list, "x"),
        explain_oom("training", lambda: training_knobs(config), "then go on"),
    ):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        )
    line = str(told.value)
    assert line.startswith("out of memory while training: 8 bytes more were asked for, ")
    for name in ("trainer.batch_size", "trainer.segments_per_step", "memory.segment_length",
                 "memory.size (now 32)", "trainer.precision", "memory.device=cpu"):  # fmt: skip
        assert name in line
    assert line.endswith("; then go on") and "\n" not in line
    assert "evaluation.batch_size" in evaluation_knobs(config)[0]


def test_a_sweep_names_memory(tmp_path):
    assert reason(OUT_OF_MEMORY, tmp_path) == "out of memory (exit status 12)"
    assert reason(-signal.SIGKILL, tmp_path) == "killed by SIGKILL (often: out of memory)"
    assert reason(-signal.SIGSEGV, tmp_path) == "killed by SIGSEGV"


LIMITED = """
import re, resource, sys
from pathlib import Path
import unimem.cli.train, unimem.training.run as run
phase, more = sys.argv.pop(1), int(sys.argv.pop(1))
of = getattr(run._Run, phase)

def limited(self, *given):
    size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + more * 2**20, resource.RLIM_INFINITY))
    return of(self, *given)

setattr(run._Run, phase, limited)
unimem.cli.train.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are those of Linux")
@pytest.mark.parametrize("phase", ["fit", "result"])
def test_a_run_that_lacks_memory_says_so_and_can_be_continued(runs, phase):
    long = ("data.length=1024", "data.validation_documents=64", "memory.segment_length=512",
            "evaluation.documents=64", "name=r", "trainer.max_steps=2", 
            "model.hidden_size=64")  # fmt: skip
    wide = "trainer.batch_size=256" if phase == "fit" else "evaluation.batch_size=64"
    given = runs.overrides(*long, wide)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, phase, "200" if phase == "fit" else "20", *given],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == OUT_OF_MEMORY, done.stderr
    what = "training" if phase == "fit" else "evaluating"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"out of memory while {what}: ") and "more were asked for" in last
    assert "(ulimit -v)" in last and "resume=true name=r" in last
    assert "Traceback" not in done.stderr
    folder = runs.output / "runs" / "r"
    assert (folder / "config.yaml").is_file() and not (folder / "result.json").exists()
    if phase == "result":
        runs.start(*long, "resume=true", "evaluation.batch_size=1")
        assert (folder / "result.json").is_file()
