"""Reading a run's folder: its settings, its metrics, its result."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unimem.integrity import is_changed, require_whole
from unimem.runs.layout import CONFIG, METRICS, RESULT
from unimem.yaml_file import load_yaml


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as recorded in its folder: its settings, and its result once it is finished."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any] | None

    def status(self) -> str:
        """Whether the run came to its end, or else how far it is."""
        if self.result is not None:
            return "finished"
        metrics = read_metrics(self.folder)
        step = metrics[-1].get("step", 0) if metrics else 0
        steps = self.config["trainer"]["max_steps"] or "an epoch's"
        return f"unfinished: step {step} of {steps}"


def read_run(folder: Path) -> RunRecord | None:
    """Read a run's folder; None if no run was begun there.

    Raises ValueError, which names the file, if a record there is damaged or of something else.
    """
    if (folder / RESULT).is_file():
        result = read_result(folder)
        require_run(result, folder / RESULT)
        return RunRecord(folder=folder, config=result["config"], result=result)
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = load_yaml(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not the record of a run: it holds no settings")
    return RunRecord(folder=folder, config=cast(dict[str, Any], config), result=None)


def require_run(result: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError, which names the file, unless a result says what held-out documents gave."""
    value: Any = result
    for key in ("evaluation", "scores", "own"):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict) or "nll" not in value:
        raise ValueError(f"{path} is not the record of a run: it has no evaluation.scores.own")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics of training, up to a line that is damaged or still being written."""
    path = folder / METRICS
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            found.append(json.loads(line if line.endswith("\n") else ""))
        except (json.JSONDecodeError, RecursionError):
            break
    return found


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result of a finished run: a mapping that holds at least its `config`.

    Raises ValueError, with what `folder` is instead, if it holds none or a damaged one.
    """
    path = folder / RESULT
    if not path.is_file():
        raise ValueError(_why_no_result(folder))
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {_AGAIN}") from None
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise ValueError(f"{path} is not the record of a run: it has no config; {_AGAIN}")
    if is_changed(result):
        raise ValueError(f"{path} is damaged: its content is not as it was written; {_AGAIN}")
    return result


def quarantine_result(folder: Path) -> str | None:
    """Rename a result that is damaged, or one of its files is, so that the run can be continued.

    Returns what is damaged, or None.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        read_result(folder)
        require_whole(folder)
    except ValueError as error:
        kept = path.with_name(f"{RESULT}.damaged")
        os.replace(path, kept)
        return f"{error}; kept as {kept.name}, and the run is not finished"
    return None


_AGAIN = "bring that file back, or run it again under another name"


def _why_no_result(folder: Path) -> str:
    """Return what a path is that is not the folder of a finished run, and what to name instead."""
    parent = folder.parent if folder.is_absolute() else Path(os.path.relpath(folder.parent))
    if not folder.exists():
        near = difflib.get_close_matches(folder.name, _runs_in(parent), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else _NAME_A_RUN
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not parent.exists():
            hint = f"for a model of the hub: {_EVALUATE_MODEL.format(folder)}"
        return f"{folder} does not exist; {hint}"
    if not folder.is_dir():
        return f"{folder} is a file, not the folder of a run; {_enclosing_run(parent)}"
    if (folder / CONFIG).is_file():
        return (
            f"{folder} holds no {RESULT}: the run has not come to its end; continue it with the "
            f"command that began it and name={folder.name} resume=true, or name another run"
        )
    if _is_run(parent):
        return f"{folder} is a part of a run; {_enclosing_run(parent)}"
    if (folder / "config.json").is_file():
        return (
            f"{folder} is a model in the Hugging Face format, not the folder of a run; "
            f"to evaluate it without training: {_EVALUATE_MODEL.format(folder)}"
        )
    runs = _runs_in(folder)
    if runs:
        more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
        return f"{folder} is not a run, but holds runs: name one of {', '.join(runs[:3])}{more}"
    missing = f"it holds neither {RESULT} nor {CONFIG}"
    return f"{folder} is not the folder of a run: {missing}; {_NAME_A_RUN}"


_NAME_A_RUN = "name the folder of a finished run, as outputs/runs/NAME"
_EVALUATE_MODEL = "unimem-train trainer.max_steps=0 model=hf model.name={}"


def _enclosing_run(folder: Path) -> str:
    """Name the run that a folder is, or lies in."""
    for outer in (folder, folder.parent):
        if _is_run(outer):
            return f"name the run's folder, {outer}"
    return _NAME_A_RUN


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESULT, CONFIG))


def _runs_in(folder: Path) -> list[str]:
    """Name the runs that lie directly in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _is_run(path))
