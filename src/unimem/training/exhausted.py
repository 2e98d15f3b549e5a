"""Memory that ran out: told in a line, with what was asked for, what there is, and what to lower.

The kernel of Linux may kill a process instead; nothing can be told then.
"""

import errno
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimem.config import Config

OUT_OF_MEMORY = errno.ENOMEM
"""Exit status of a command that ran out of memory: 12."""

CORPUS_KNOBS = ["data.train_documents", "data.validation_documents", "data.max_tokens"]
"""Settings that the memory of building a corpus depends on."""

_SAID = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "bad_alloc",
    "_alloc_failed",
)
"""Parts of what torch, CUDA's libraries and the system say, in small letters."""

_ASKED = re.compile(
    r"(?:allocate|size|mmap) (?P<count>\d[\d.,]*) ?(?P<unit>bytes|[KMGT]i?B)?", re.IGNORECASE
)
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")


class OutOfMemoryError(MemoryError):
    """Memory that ran out, in a line for the user."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is of memory that is not there."""
    if isinstance(error, OSError):
        found = error.errno == errno.ENOMEM
    elif isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        found = any(said in str(error).lower() for said in _SAID)
    else:
        found = isinstance(error, MemoryError)
    return found or (error.__cause__ is not None and out_of_memory(error.__cause__))


@contextmanager
def memory_told(what: str, lower: Callable[[], Sequence[str]], then: str) -> Iterator[None]:
    """Raise `OutOfMemoryError` for an error of memory within, which an inner one has not told yet.

    Args:
        what: what was being done, as `training`.
        lower: gives settings, with their values, that take less memory if they are changed.
        then: how to go on.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not out_of_memory(error):
            raise
        knobs = f"; what lowers the need: {', '.join(lower())}"
        line = f"out of memory while {what}: {in_words(error)}{knobs}; {then}"
        raise OutOfMemoryError(line) from error


def training_knobs(config: "Config") -> list[str]:
    """Name the settings that the memory of a training step depends on."""
    memory, trainer = config.memory, config.trainer
    knobs = [
        f"trainer.batch_size (now {trainer.batch_size})",
        f"trainer.segments_per_step (now {config.segments_per_step()})",
        f"memory.segment_length (now {memory.segment_length})",
        *_slots(config),
    ]
    if not trainer.gradient_checkpointing:
        knobs.append("trainer.gradient_checkpointing=true")
    if trainer.precision != "bf16-true":
        knobs.append("trainer.precision=bf16-true")
    return [*knobs, *_on_cpu(config)]


def evaluation_knobs(config: "Config") -> list[str]:
    """Name the settings that the memory of reading held-out documents depends on."""
    settings = config.evaluation
    return [
        f"evaluation.batch_size (now {settings.batch_size})",
        f"evaluation.max_tokens (now {settings.max_tokens or 'null, whole documents'})",
        *_slots(config),
        *_on_cpu(config),
    ]


def _slots(config: "Config") -> list[str]:
    size = config.memory.flat(config.num_layers()).get("memory.size")
    return [] if size is None else [f"memory.size (now {size})"]


def _on_cpu(config: "Config") -> list[str]:
    elsewhere = config.trainer.accelerator == "cpu" or config.memory.device == "cpu"
    return [] if elsewhere else ["memory.device=cpu on a GPU"]


def in_words(error: BaseException) -> str:
    """Return what was asked for, if the error tells, and what there is."""
    while not _ASKED.search(str(error)) and error.__cause__ is not None:
        error = error.__cause__
    found = _ASKED.search(str(error))
    unit = (found["unit"] or "bytes") if found else ""
    asked = f"{found['count']} {unit} more were asked for, " if found else ""
    return asked + (_on_gpu() if _is_of_gpu(error) else _here())


def _is_of_gpu(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(x in str(error) for x in ("CUDA", "GPU"))


def _on_gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "the GPU cannot be asked what it has"
    free, total = torch.cuda.mem_get_info()
    held = _gigabytes(torch.cuda.memory_reserved())
    return (
        f"the GPU has {_gigabytes(total)}, {_gigabytes(free)} of them free, "
        f"{held} held by this process"
    )


def _here() -> str:
    there = f"{_gigabytes(_kilobytes(_MEMINFO, 'MemAvailable'))} are free on this machine"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        used = _gigabytes(_kilobytes(_STATUS, "VmSize"))
        there += f", and this process may use {_gigabytes(limit)} (ulimit -v), {used} of them used"
    return there


def _kilobytes(file: Path, name: str) -> int:
    """Read a size that Linux writes in kB, in bytes; 0 where there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
