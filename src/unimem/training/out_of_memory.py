"""Out-of-memory errors in one line: what was asked for, what there is, which settings to lower.

Linux may kill a process instead; then there is no message.
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
"""Settings that lower the memory of building a corpus."""

_SAID = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "bad_alloc",
    "_alloc_failed",
)
"""Lower-case parts of the messages of torch, CUDA's libraries and the system."""

_ASKED = re.compile(
    r"(?:allocate|size|mmap) (?P<count>\d[\d.,]*) ?(?P<unit>bytes|[KMGT]i?B)?", re.IGNORECASE
)
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")


class OutOfMemoryError(MemoryError):
    """Memory ran out; the message is a line for the user."""


def is_oom(error: BaseException) -> bool:
    """Whether an error, or its cause, is an out-of-memory error."""
    if isinstance(error, OSError):
        found = error.errno == errno.ENOMEM
    elif isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        found = any(said in str(error).lower() for said in _SAID)
    else:
        found = isinstance(error, MemoryError)
    return found or (error.__cause__ is not None and is_oom(error.__cause__))


@contextmanager
def explain_oom(what: str, lower: Callable[[], Sequence[str]], then: str) -> Iterator[None]:
    """Turn an out-of-memory error into `OutOfMemoryError`, unless an inner context did.

    Args:
        what: what was being done, as `training`.
        lower: returns settings, with their values, that lower the memory.
        then: how to go on.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_oom(error):
            raise
        knobs = f"; what lowers the need: {', '.join(lower())}"
        line = f"out of memory while {what}: {in_words(error)}{knobs}; {then}"
        raise OutOfMemoryError(line) from error


def training_knobs(config: "Config") -> list[str]:
    """Return the settings that lower the memory of a training step."""
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
    """Return the settings that lower the memory of an evaluation."""
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
    """Return the bytes that were asked for, if the error names them, and the bytes there are."""
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
    """Return a size in bytes from a file of Linux that has it in kB; 0 if it is missing."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
