"""Studies whose losses are given: nothing is trained, so that verdicts can be known exactly."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unimem.evaluation.statistics import perplexity
from unimem.evaluation.tokens import TokenTable
from unimem.results.comparison import CorpusComparison, comparisons
from unimem.results.study import StudyRecord, read_study

LENGTH = 33
LOGGER = {"mode": "disabled", "project": "p", "entity": None, "group": None, "init_timeout": 5}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A cell: its overrides as text, and the measurements that its files will hold.

    Losses differ between documents, in every cell alike; `uneven` is added to the loss of even
    documents and subtracted from the loss of odd documents. `columns` are further losses of every
    token, of controls and bounds. `more` replaces parts of the result.
    """

    overrides: str
    nll: float = 2.0
    seeds: tuple[int, ...] = (0, 1, 2)
    missing: tuple[int, ...] = ()
    uneven: float = 0.0
    corpus: str = "markov"
    tokens_per_second: float = 1000.0
    seconds: float = 10.0
    documents: int = 8
    columns: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def make_study(output: Path, *cells: Made, **fields: Any) -> StudyRecord:
    """Write a study `made` under `output` and read it back; `fields` go into study.json."""
    entries = [_write(output, i, cell, seed) for i, cell in enumerate(cells) for seed in cell.seeds]
    (output / "made").mkdir(parents=True)
    record = {"study": "made", "arguments": ["sweeps=made"], "bases": [], "cells": entries}
    (output / "made" / "study.json").write_text(json.dumps(record | fields))
    return read_study(output, "made")


def make_comparison(output: Path, *cells: Made) -> CorpusComparison:
    """Write a study as `make_study` does, and return its only panel."""
    (comparison,) = comparisons(make_study(output, *cells).groups())
    return comparison


def _write(output: Path, i: int, cell: Made, seed: int) -> dict[str, Any]:
    folder = output / "cells" / f"{i}-s{seed}"
    overrides = [*cell.overrides.split(), f"seed={seed}"]
    entry = {"label": " ".join(overrides), "overrides": overrides, "base": None}
    entry |= {"signature": f"{i}", "folder": folder.relative_to(output).as_posix()}
    if seed in cell.missing:
        return entry
    folder.mkdir(parents=True)
    signs = np.where(np.arange(cell.documents) % 2, -1.0, 1.0)
    nll = cell.nll + 0.1 * np.arange(cell.documents) + cell.uneven * signs
    columns = {"own": [np.full(LENGTH - 1, x) for x in nll]}
    columns |= {k: [np.full(LENGTH - 1, x)] * cell.documents for k, x in cell.columns.items()}
    TokenTable.of([f"d{d}" for d in range(cell.documents)], columns).save(folder)
    (folder / "config.yaml").write_text("{}")
    (folder / "result.json").write_text(json.dumps(_result(cell, seed) | cell.more))
    return entry


def _result(cell: Made, seed: int) -> dict[str, Any]:
    plain = "method=vanilla" in cell.overrides
    own = {"nll": cell.nll, "interval": [None, None], "perplexity": float(perplexity(cell.nll))}
    own |= {"bits_per_byte": None, "tokens_per_second": cell.tokens_per_second}
    return {
        "seed": seed,
        "memory": {"memory.injection": "none" if plain else "layers"},
        "parameters": 100,
        "state_bytes_per_row": 64,
        "tokens_seen": 1000,
        "training_seconds": cell.seconds,
        "peak_memory_bytes": 2**20,
        "precision": "32-true",
        "corpus": {"digest": cell.corpus, "summary": f"{cell.corpus}: 8 documents"},
        "evaluation": {
            "protocol": "segments",
            "segment_length": 8,
            "scores": {"own": own},
            "ages": None,
        },
        "versions": {"python": "3"},
        "commit": None,
        "machine": {"platform": "Linux", "gpu": None},
        "config": {"seed": seed, "logger": LOGGER},
    }
