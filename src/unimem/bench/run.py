"""A benchmark from its settings to its record, table and plot."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unimem.bench.cases import Bench, Case, cases
from unimem.bench.record import Log, Record, attempt, last_reason, new_record
from unimem.bench.report import write_report
from unimem.bench.settings import BenchSettings
from unimem.bench.timer import bounded_memory
from unimem.config import ConfigError
from unimem.runs.files import write_json_atomic


def bench(settings: BenchSettings, log: Log) -> Record:
    """Measure all cases, and write the record after each, table and plot at the end.

    A case that cannot run is named in the record with its reason. Gives the record. Raises
    `ConfigError` if there is no such device.
    """
    device = chosen_device(settings)
    torch.set_num_threads(settings.threads)
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings.shape}-{device.type}.json"
    record = new_record(settings, device, "cases")
    measuring = Bench(settings=settings, device=device)
    planned = list(cases(settings))
    with _old_objects_spared():
        for number, case in enumerate(planned, 1):
            began = time.perf_counter()
            line = _measure(measuring, case, record)
            seconds = time.perf_counter() - began
            log(f"[{number}/{len(planned)}] {case.label}: {line} ({seconds:.0f} s)")
            write_json_atomic(path, record)
    write_report(folder)
    return record


def chosen_device(settings: BenchSettings) -> torch.device:
    """Return the device. Raises `ConfigError` if a GPU is asked for and there is none."""
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise ConfigError("device=cuda but torch finds no GPU; use auto or cpu")
    return torch.device("cuda" if settings.device != "cpu" and found else "cpu")


@contextmanager
def _old_objects_spared() -> Iterator[None]:
    """Keep garbage collection, which comes before each peak, from looking at whole libraries."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _measure(measuring: Bench, case: Case, record: Record) -> str:
    """Measure a case into the record, and give what to say of it."""

    def measure() -> dict[str, Any]:
        with bounded_memory(measuring.device):
            return measuring.measure(case)

    found = attempt(record, measure, what=case.what, method=case.method, size=case.size)
    if found is None:
        return last_reason(record)
    record["cases"].append(found)
    return said(found)


def said(found: dict[str, Any]) -> str:
    """Put a case's ratios into words."""
    if "forward" not in found:
        return f"{found['ratio']:.2f} x vanilla"
    parts = [
        f"forward {found['forward']['ratio']:.2f} x vanilla, both {found['both']['ratio']:.2f}"
    ]
    if "search" in found:
        parts.append(f"search {found['search']['share']:.2f} x its product")
    return ", ".join(parts)
