"""The runs under a folder as flat rows: to list, to filter and to sort."""

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from unimem.evaluation.statistics import perplexity
from unimem.results.records import CONFIG, RESULT, read_result

STUDY = "study.json"
METRICS = "metrics.jsonl"
WANDB = "wandb"
"""The folder of W&B, whose runs have a config.yaml of their own."""

COLUMNS = (
    "name",
    "study",
    "method",
    "memory.injection",
    "memory.writing",
    "memory.management",
    "memory.reading",
    "seed",
    "nll",
    "perplexity",
    "perplexity_low",
    "perplexity_high",
    "bits_per_byte",
    "tokens_seen",
    "seconds",
    "peak_memory_bytes",
)
"""What is shown of a run unless other columns are asked for."""

Row = dict[str, Any]
"""Values of a run by column: `COLUMNS`, `status`, `folder` and every setting by its dotted name."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its folder tells it: its settings, and its result once it is finished."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any] | None

    def status(self) -> str:
        """Say whether the run came to its end, or else how far it is."""
        if self.result is not None:
            return "finished"
        metrics = read_metrics(self.folder)
        step = metrics[-1]["step"] if metrics else 0
        steps = self.config["trainer"]["max_steps"] or "an epoch's"
        return f"unfinished: step {step} of {steps}"


def read_run(folder: Path) -> RunRecord | None:
    """Read a run's folder; None if no run was begun there."""
    if (folder / RESULT).is_file():
        result = read_result(folder)
        return RunRecord(folder=folder, config=result["config"], result=result)
    if not (folder / CONFIG).is_file():
        return None
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    return RunRecord(folder=folder, config=config, result=None)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics of training; a line that is still being written is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def collect(root: Path, *, unfinished: bool = False) -> list[Row]:
    """Give a row for every finished run under `root`, and if asked for the unfinished ones too.

    Raises ValueError if `root` is no folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; name one that runs were written to")
    studies = _studies(root)
    runs = [run for folder in _folders(root) if (run := read_run(folder)) is not None]
    return [
        _row(run, root, studies.get(run.folder.resolve(), []))
        for run in runs
        if unfinished or run.result is not None
    ]


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """Keep the rows for which every condition `column=value` holds; `null` is an absent value.

    Raises ValueError for what is no condition, or a column that no row has.
    """
    kept = list(rows)
    for condition in conditions:
        column, separator, value = condition.partition("=")
        if not separator:
            raise ValueError(f"where {condition}: write column=value")
        require_columns(rows, [column])
        kept = [row for row in kept if _equals(row.get(column), value)]
    return kept


def sort(rows: Sequence[Row], column: str) -> list[Row]:
    """Sort by a column, smallest first; rows without a value come last.

    Raises ValueError for a column that no row has.
    """
    require_columns(rows, [column])
    return sorted(rows, key=lambda row: _order(row.get(column)))


def require_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Raise ValueError for a column that no row has; without rows nothing is known of columns."""
    known = {*COLUMNS, "status", "folder"}.union(*rows)
    for column in columns:
        if rows and column not in known:
            near = difflib.get_close_matches(column, sorted(known), n=3) or COLUMNS
            raise ValueError(f"no run has a column {column}; for example {', '.join(near)}")


def _folders(root: Path) -> Iterator[Path]:
    """Give the folders of runs; what lies in them (checkpoints, later evaluations) is theirs."""
    for path, folders, files in os.walk(root):
        if CONFIG in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(n for n in folders if n != WANDB and not n.startswith("."))


def _studies(root: Path) -> dict[Path, list[str]]:
    """Say which studies a cell belongs to, by its folder."""
    found: dict[Path, list[str]] = {}
    for path in sorted(root.glob(f"*/{STUDY}")):
        study = json.loads(path.read_text(encoding="utf-8"))
        for cell in study["cells"]:
            found.setdefault((root / cell["folder"]).resolve(), []).append(study["study"])
    return found


def _row(run: RunRecord, root: Path, studies: Sequence[str]) -> Row:
    config, result = run.config, run.result or {}
    # A dimension is a mapping of its options, everything else on the node is a budget.
    memory = {
        key: "+".join(sorted(value)) if isinstance(value, dict) else value
        for key, value in config["memory"].items()
    }
    row = dict(_flat(config | {"memory": memory, "method": config["method"]["name"]}))
    row |= {key: None for key in COLUMNS if key not in row}
    row |= {
        "name": run.folder.name,
        "study": "+".join(studies) or config["study"],
        "status": run.status(),
        "folder": run.folder.relative_to(root).as_posix(),
    }
    if result:
        own = result["evaluation"]["scores"]["own"]
        low, high = (_perplexity(x) for x in own["interval"])
        row |= {key: own[key] for key in ("nll", "perplexity", "bits_per_byte")}
        row |= {"perplexity_low": low, "perplexity_high": high}
        row |= {key: result[key] for key in ("tokens_seen", "seconds", "peak_memory_bytes")}
    return row


def _perplexity(nll: float | None) -> float | None:
    """Give e^nll; None where that is no number."""
    value = math.inf if nll is None else float(perplexity(nll))
    return value if math.isfinite(value) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _equals(value: Any, text: str) -> bool:
    try:
        return str(value) == text or value == json.loads(text)
    except json.JSONDecodeError:
        return False


def _order(value: Any) -> tuple[int, Any]:
    if value is None:
        return 2, 0
    return (0, value) if isinstance(value, int | float) else (1, str(value))
