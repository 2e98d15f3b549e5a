"""What is measured on a CUDA GPU: TinyLLaMA-1.1B in training and evaluation, search, gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimem.bench.backends import compare_backends
from unimem.bench.record import Log, Record, attempt, last_reason, new_record
from unimem.bench.report import write_report
from unimem.bench.roofline import measure_retrieval
from unimem.bench.settings import BenchSettings
from unimem.bench.shapes import SHAPES, TINYLLAMA, Shape
from unimem.bench.tinyllama import measure_documents, measure_tokens
from unimem.config import ConfigError
from unimem.runs.files import write_json_atomic

METHODS = ("vanilla", "transformer_xl", "memorizing_transformer", "unimix")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is.

    Args:
        shape: that is trained and reads documents.
        layer: whose gradients are compared, and whose heads search.
        most_rows: that are tried in training.
        slots: among which is searched.
        documents: their tokens.
        compared: slots in memory when gradients are compared.
    """

    shape: Shape
    layer: Shape
    most_rows: int
    slots: tuple[int, ...]
    documents: tuple[int, ...]
    compared: int


FULL = Scale(
    shape=TINYLLAMA,
    layer=SHAPES["tinyllama_layer"],
    most_rows=256,
    slots=(10240, 65536),
    documents=(65536, 262144, 1048576),
    compared=2048,
)


def bench_gpu(settings: BenchSettings, log: Log) -> Record:
    """Measure everything on a CUDA GPU, record it and write the report; gives the record.

    Raises `ConfigError` if there is no CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError("what=gpu needs a CUDA GPU, and torch finds none; use another what")
    device = torch.device("cuda")
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    record = new_record(settings, device, *TABLES) | {"shape": "tinyllama", "dtype": "bfloat16"}
    for name, label, measure in measurements(settings, FULL, device):
        log(f"{name} {label}: {keep(record, name, label, measure)}")
        write_json_atomic(folder / f"tinyllama-{device.type}.json", record)
    write_report(folder)
    return record


TABLES = ("training", "retrieval", "evaluation", "gradients")
"""What is measured, by the name of its table."""

Measure = Callable[[], list[dict[str, Any]]]


def measurements(
    settings: BenchSettings, scale: Scale, device: torch.device
) -> Iterator[tuple[str, str, Measure]]:
    """List what is measured: the name of its table, what it is about, and the call for its rows."""
    for method in METHODS:
        yield (
            "training",
            method,
            lambda m=method: [measure_tokens(settings, scale.shape, m, scale.most_rows, device)],
        )
    for slots in scale.slots:
        yield (
            "retrieval",
            f"{slots} slots",
            lambda n=slots: measure_retrieval(settings, scale.layer, n, device),
        )
    for method in METHODS:
        yield (
            "evaluation",
            method,
            lambda m=method: measure_documents(settings, scale.shape, m, scale.documents, device),
        )
    for method in settings.methods:
        if method != "vanilla":
            yield (
                "gradients",
                method,
                lambda m=method: compare_backends(settings, scale.layer, m, scale.compared, device),
            )


def keep(record: Record, name: str, label: str, measure: Measure) -> str:
    """Put the rows of a measurement into its table, and give what to say of it."""
    rows = attempt(record, measure, what=name, case=label)
    if rows is None:
        return last_reason(record)
    record[name] += rows
    return "; ".join(", ".join(f"{k} {v}" for k, v in row.items()) for row in rows)
