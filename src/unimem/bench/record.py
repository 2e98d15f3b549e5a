"""The record of a benchmark: where it ran, what was found, and what could not run."""

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from unimem.bench.settings import BenchSettings
from unimem.bench.timer import Clock
from unimem.runs.environment import git_commit, machine, versions
from unimem.training.out_of_memory import is_oom

logger = logging.getLogger(__name__)

Log = Callable[[str], None]
"""Takes a line about what was measured."""

Record = dict[str, Any]
Found = TypeVar("Found")


def new_record(settings: BenchSettings, device: torch.device, *tables: str) -> Record:
    """Return a record of empty tables, with all that decides its numbers.

    `not_run` has a line for each measurement that there is not, with its reason; `failures` counts
    those whose reason is an error of the program.
    """
    return {
        "shape": settings.shape,
        "device": device.type,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "backend": settings.backend,
        "clock": Clock(device=device, threads=settings.threads).kind,
        "settings": settings.model_dump(),
        "machine": machine(),
        "versions": versions(),
        "commit": git_commit(),
        **{table: [] for table in tables},
        "not_run": [],
        "failures": 0,
    }


def attempt(record: Record, measure: Callable[[], Found], **about: Any) -> Found | None:
    """Measure, or put `about` into `not_run` with the reason and give None.

    An error that is neither of settings nor of memory is logged with its traceback and counts as a
    failure; the other measurements go on.
    """
    try:
        return measure()
    except (ValueError, MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if is_oom(error):
            reason = "not enough memory"
        elif isinstance(error, RuntimeError):
            logger.exception("%s failed", about)
            record["failures"] += 1
            reason = f"failed: {reason}"
        record["not_run"].append(about | {"reason": reason})
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def last_reason(record: Record) -> str:
    """Return why the measurement that was attempted last did not run."""
    return f"cannot run: {record['not_run'][-1]['reason']}"
