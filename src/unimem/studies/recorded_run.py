"""A finished run as the base of others: its record, turned back into overrides."""

from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from unimem.config import ConfigError, compose_node, resolve
from unimem.data.tokenizer import holds_tokenizer
from unimem.memory.registry import DIMENSIONS
from unimem.memory.settings import flat_knobs
from unimem.overrides import literal
from unimem.paths import config_root
from unimem.runs.folder import MODEL
from unimem.runs.records import read_result
from unimem.runs.signature import data_digest
from unimem.studies.cells import Cell, make_draft, parse
from unimem.studies.study_file import setting_lines

PLACE = ("output", "study", "name", "resume", "logger.group", "logger.tags")
"""Settings of a record that say where it lies; another run has its own."""


def recorded_run(folder: Path) -> Cell:
    """Return a finished run, to start from its weights.

    Raises `ConfigError` if it is not finished, has no weights, or if its settings or documents are
    no longer to be had.
    """
    where = f"base={folder}"
    try:
        result = read_result(folder)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if "signature" not in result:
        raise ConfigError(f"{where}: recorded by an earlier version; run it again")
    model = folder / MODEL
    if not model.is_dir():
        raise ConfigError(f"{where}: it holds no {MODEL}/; name the run that trained its weights")
    try:
        draft = make_draft("base", parse(overrides_of(result["config"])))
        found = data_digest(draft.config.data)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from None
    digest = result["corpus"]["digest"]
    if found != digest:
        raise ConfigError(
            f"{where}: data={draft.config.data.kind} is not what the run was trained on: digest "
            f"{found[:12]}, but {digest[:12]} then; bring those documents back"
        )
    return Cell(
        label="base",
        overrides=draft.overrides,
        config=draft.config,
        signature=result["signature"],
        folder=folder,
        tokenizer=str(model.resolve()) if holds_tokenizer(model) else "bpe",
    )


def overrides_of(recorded: dict[str, Any]) -> list[str]:
    """Return overrides of `unimem-train` that compose a recorded configuration again.

    Only what the groups and the method do not say already is named. Raises `ConfigError` if the
    settings of this version cannot say what was recorded.
    """
    model, method = recorded["model"], recorded["method"]["name"]
    known = (config_root() / "conf" / "method" / f"{method}.yaml").is_file()
    lines = [f"method={method if known else 'custom'}", f"data={recorded['data']['kind']}"]
    if model["kind"] == "pretrained":
        lines += ["model=hf", f"model.name={literal(model['name'])}"]
    composed = _composed(lines)
    recorded = {k: v for k, v in recorded.items() if k != "injection_layer"}  # of earlier versions
    recorded["memory"] = flat_knobs(recorded["memory"])
    choices = {dimension: recorded["memory"][dimension] for dimension in DIMENSIONS}
    others = {d: x for d, x in choices.items() if set(x) != set(composed["memory"][d])}
    if others:
        lines += [f"memory.{d}={literal(list(choice))}" for d, choice in others.items()]
        composed = _composed(lines)
    names = {line.partition("=")[0] for line in setting_lines(_plain(lines))}
    for line in _differing(recorded, composed):
        if line.partition("=")[0] not in names:
            raise ConfigError(f"this version has no such setting: {line}")
        lines.append(line)
    if different := _differing(recorded, _composed(lines)):
        raise ConfigError(f"this version cannot be set to {', '.join(different)}")
    return lines


def _composed(lines: list[str]) -> dict[str, Any]:
    return resolve(compose_node("train", lines))


def _plain(lines: list[str]) -> dict[str, Any]:
    """Return all that can be set beside these lines, whether it says something or not."""
    return cast(dict[str, Any], OmegaConf.to_container(compose_node("train", lines)))


def _differing(recorded: dict[str, Any], composed: dict[str, Any]) -> list[str]:
    """Return, as overrides, the recorded settings that `composed` lacks or has otherwise."""
    same = set(setting_lines(composed))
    return [
        line
        for line in setting_lines(recorded)
        if line not in same and line.partition("=")[0] not in PLACE
    ]
