"""The runs under a folder as flat rows: to list, to filter and to sort."""

import difflib
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unimem.evaluation.statistics import perplexity
from unimem.runs.layout import CONFIG, RESULT, STUDY
from unimem.runs.records import RunRecord, read_run

WANDB = "wandb"
"""The folder of W&B, whose runs have a config.yaml of their own."""

SHOWN = (
    "name",
    "study",
    "method",
    "corpus",
    "model",
    "seed",
    "nll",
    "perplexity",
    "own-off",
    "tokens_seen",
    "seconds",
    "peak_memory_bytes",
)
"""What a terminal shows of a run unless other columns are asked for, the first ones first."""

COLUMNS = (
    "name",
    "kind",
    "study",
    "method",
    "corpus",
    "model",
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
    "nll_off",
    "nll_other",
    "own-off",
    "own-off_low",
    "own-off_high",
    "own-other",
    "own-other_low",
    "own-other_high",
    "tokens_seen",
    "seconds",
    "peak_memory_bytes",
)
"""What files get of a run unless other columns are asked for.

kind: run or evaluation, a later one by `unimem-eval`. nll_off, nll_other: with memory off, and with
another document's. own-off, own-other: the paired differences, below 0 where own memory is better.
"""

ALIASES = {"data": "corpus"}
"""Columns by the name that the command line of a run has for them."""

Row = dict[str, Any]
"""Values by column: `COLUMNS`, `status`, `folder`, every setting by its dotted name, and what the
evaluation found as `evaluation.scores.off.nll`."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The rows of the runs under a folder, and a line for each record that cannot be read."""

    rows: list[Row]
    damaged: list[str]


def collect(root: Path, *, unfinished: bool = False) -> Collected:
    """Return a row for every finished run and evaluation under `root`.

    With `unfinished` the unfinished runs have one too. A record that cannot be read costs its own
    row alone. Raises ValueError if `root` is no folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; name one that runs were written to")
    damaged: list[str] = []
    studies = _studies(root, damaged)
    rows: list[Row] = []
    for folder in _folders(root):
        try:
            run = read_run(folder)
            if run is not None and (unfinished or run.result is not None):
                rows.append(_row(run, root, studies.get(run.folder.resolve(), [])))
        except ValueError as error:
            damaged.append(str(error))
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            damaged.append(f"{folder} is of another version, or no run ({error!r})")
    return Collected(rows=rows, damaged=damaged)


CONDITION = re.compile(r"([^<>=!]+)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """Keep the rows for which every condition holds.

    column=value, or one of several as column=a,b; column!=value; and for numbers <, <=, >, >=.
    `null` is an absent value. Raises ValueError for what is no condition, or a column that no row
    has.
    """
    kept = list(rows)
    for condition in conditions:
        found = CONDITION.fullmatch(condition)
        if found is None:
            raise ValueError(
                f"where {condition}: write column=value, column=a,b, column!=value or column<number"
            )
        column, sign, text = found[1].strip(), found[2], found[3].strip()
        (column,) = known_columns(rows, [column])
        if sign in COMPARED:
            try:
                bound = float(text)
            except ValueError:
                raise ValueError(f"where {condition}: {text!r} is not a number") from None
            kept = [row for row in kept if _compares(row.get(column), COMPARED[sign], bound)]
        else:
            kept = [row for row in kept if _is_one_of(row.get(column), text) == (sign == "=")]
    return kept


def sort(rows: Sequence[Row], column: str, *, descending: bool = False) -> list[Row]:
    """Sort by a column, smallest first, or largest with `descending` or a minus before its name.

    Rows without a value come last. Raises ValueError for a column that no row has.
    """
    if column.startswith("-"):
        column, descending = column[1:], not descending
    (column,) = known_columns(rows, [column])
    known = [row for row in rows if row.get(column) is not None]
    known.sort(key=lambda row: _order(row[column]), reverse=descending)
    return [*known, *(row for row in rows if row.get(column) is None)]


def all_columns(rows: Sequence[Row]) -> list[str]:
    """Name the columns that there are: the usual ones first, then all others by name."""
    usual = [*COLUMNS, "status", "folder"]
    return [*usual, *sorted(set().union(*rows) - set(usual))]


def known_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return columns by the names that rows have for them.

    Raises ValueError for one that no row has; without rows nothing is known of columns.
    """
    known = {*all_columns(rows), *ALIASES}
    for column in columns:
        if rows and column not in known:
            near = difflib.get_close_matches(column, sorted(known), n=3)
            near += [name for name in sorted(known) if name.split(".")[-1] == column][:3]
            hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
            raise ValueError(f"no run has a column {column}; {hint}--list-columns names them all")
    return [ALIASES.get(column, column) for column in columns]


def _folders(root: Path) -> Iterator[Path]:
    """Return the folders of runs and of evaluations, which lie in their runs or anywhere else."""
    for path, folders, files in os.walk(root):
        folders[:] = sorted(n for n in folders if n != WANDB and not n.startswith("."))
        if CONFIG in files:
            yield Path(path)
            inner = [Path(path, name) for name in folders]
            folders.clear()
            yield from (folder for folder in inner if (folder / RESULT).is_file())
        elif RESULT in files:
            yield Path(path)
            folders.clear()


def _studies(root: Path, damaged: list[str]) -> dict[Path, list[str]]:
    """Return which studies a cell belongs to, by its folder."""
    found: dict[Path, list[str]] = {}
    for path in sorted(root.glob(f"*/{STUDY}")):
        try:
            study = json.loads(path.read_text(encoding="utf-8"))
            folders = [(root / cell["folder"]).resolve() for cell in study["cells"]]
            name = study["study"]
        except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:
            damaged.append(f"{path} is damaged: {error!r}")
            continue
        for folder in folders:
            found.setdefault(folder, []).append(name)
    return found


def _row(run: RunRecord, root: Path, studies: Sequence[str]) -> Row:
    config, result = run.config, run.result or {}
    # A dimension is a mapping of its options, everything else on the node is a budget.
    memory = {
        key: "+".join(sorted(value)) if isinstance(value, dict) else value
        for key, value in config["memory"].items()
    }
    settings = {key: value for key, value in config.items() if key != "method"}
    row = dict(_flat(settings | {"memory": memory}))
    row |= {key: None for key in COLUMNS if key not in row}
    layers = result.get("memory", {}).get("memory.layers") or []
    row["injection_layer"] = layers[0] if len(layers) == 1 else None
    evaluation = "run" in result
    inside = run.folder.parent.name if evaluation else None
    row |= {
        "name": f"{inside}/{run.folder.name}" if inside else run.folder.name,
        "kind": "evaluation" if evaluation else "run",
        "study": "+".join(studies) or config["study"],
        "method": config["method"]["name"],
        "corpus": config["data"]["kind"],
        "model": model_name(config["model"]),
        "status": run.status(),
        "folder": run.folder.relative_to(root).as_posix(),
    }
    if result:
        row |= _found(result["evaluation"])
        row |= {key: result.get(key) for key in ("tokens_seen", "seconds", "peak_memory_bytes")}
    return row


def model_name(model: Mapping[str, Any]) -> str:
    """Name a model by its shape, or a pretrained one by its name or the run that trained it."""
    if model.get("name") is None:
        return f"{model['num_layers']}x{model['hidden_size']}"
    path = Path(model["name"])
    if not path.is_absolute():
        return str(path)
    return path.parent.name if path.name == "model" else path.name


def _found(evaluation: Mapping[str, Any]) -> Row:
    scores, comparisons = evaluation["scores"], evaluation.get("comparisons", {})
    own = scores["own"]
    low, high = (_perplexity(x) for x in own["interval"])
    row = {key: own.get(key) for key in ("nll", "perplexity", "bits_per_byte")}
    row |= {"perplexity_low": low, "perplexity_high": high}
    for use in ("off", "other"):
        if use in scores:
            row[f"nll_{use}"] = scores[use]["nll"]
        if difference := comparisons.get(f"own-{use}"):
            low, high = difference["interval"]
            row |= {f"own-{use}": difference["difference"]}
            row |= {f"own-{use}_low": low, f"own-{use}_high": high}
    parts = ("scores", "bounds", "comparisons", "documents", "tokens", "protocol")
    return row | dict(_flat({k: evaluation[k] for k in parts if k in evaluation}, "evaluation."))


def _perplexity(nll: float | None) -> float | None:
    """Return e^nll; None where that is no number."""
    value = math.inf if nll is None else float(perplexity(nll))
    return value if math.isfinite(value) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_one_of(value: Any, text: str) -> bool:
    """Whether a value is the one written, or one of several written as a,b."""
    return _equals(value, text) or any(_equals(value, part) for part in _parts(text))


def _parts(text: str) -> list[str]:
    """Part a,b,[1,2] at the commas that are in no brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text)]


def _equals(value: Any, text: str) -> bool:
    try:
        return str(value) == text or value == json.loads(text)
    except json.JSONDecodeError:
        return False


def _compares(value: Any, compared: Callable[[float, float], bool], bound: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and compared(value, bound)


def _order(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))
