"""Which settings of a finished run `unimem-eval` may change, and the configuration that results."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from unimem.config import Config, ConfigError, canonical, check, compose_node, resolve
from unimem.data.settings import DataSettings, TokenizedSettings
from unimem.data.tokenizer import holds_tokenizer
from unimem.memory.registry import DIMENSIONS
from unimem.memory.settings import flat_knobs
from unimem.studies.cells import parse

GROUPS = ("data", "logger")
"""Groups of settings that another option can be chosen of."""
OPEN = (*(f"{group}." for group in GROUPS), "evaluation.", "attention.backend", "memory.device",
        "trainer.accelerator", "trainer.precision", "trainer.threads")  # fmt: skip
"""Settings, or beginnings of their names, that are no part of what the weights were trained with.

Budgets of memory can change beside them.
"""


def recompose(recorded: dict[str, Any], overrides: Sequence[str], run: str = "RUN") -> Config:
    """Return a run's configuration with other settings, checked again.

    Values of the record are taken as they are: no interpolation in them is resolved. Settings that
    the record does not have yet get their defaults.

    Args:
        recorded: the configuration that the run recorded.
        overrides: `name=value`, and `data=NAME` or `logger=NAME` for another option.
        run: the folder of the run, for messages.

    Raises:
        ConfigError: an override names what the weights were trained with, or no setting at all.
    """
    given = parse(overrides)
    values = _with_defaults(recorded)
    values["memory"] = memory = flat_knobs(values["memory"])
    budgets = {f"memory.{name}" for name in memory.keys() - set(DIMENSIONS)}
    for key, override in given.items():
        _require_plain(override, run)
        if key == "data.tokenizer":
            raise ConfigError(
                f"{override.input_line}: text is encoded as the model was trained, with its own "
                "tokenizer"
            )
        if key not in GROUPS and key not in budgets and not key.startswith(OPEN):
            raise ConfigError(_refusal(override, budgets, values, run))
    for group in GROUPS:
        lines = [o.input_line or "" for k, o in given.items() if k.startswith(f"{group}.")]
        if group in given:
            # Of the command line, so interpolations are the user's own.
            node = compose_node("train", [given[group].input_line or "", *lines])
            values[group] = resolve(node)[group]
    for key, override in given.items():
        group, _, name = key.partition(".")
        if name and group not in given:
            if name not in values[group]:
                raise ConfigError(_refusal(override, budgets, values, run))
            values[group] = values[group] | {name: override.value()}
    return check(canonical(values))


def reads_other_data(overrides: Sequence[str]) -> bool:
    """Whether overrides choose other documents than the run's."""
    return any(key == "data" or key.startswith("data.") for key in parse(overrides))


def require_tokenizer(data: DataSettings, weights: Path) -> None:
    """Raise `ConfigError` for documents of text if no tokenizer lies with the weights."""
    if isinstance(data, TokenizedSettings) and not holds_tokenizer(weights):
        raise ConfigError(
            f"data={data.kind} is text, but {weights} holds no tokenizer: the run was trained on "
            "generated tokens, or recorded by an earlier version"
        )


def may_share_documents(trained: dict[str, Any], evaluated: dict[str, Any]) -> bool:
    """Whether other settings of `data` may hold out documents that a run was trained on.

    It is so where the same files or repository are divided in another way.

    Args:
        trained: settings of the corpus that the run was trained on.
        evaluated: settings of the corpus whose held-out documents are evaluated.
    """
    if trained["kind"] != evaluated["kind"]:
        return False
    before, now = (_places(data.get("path")) for data in (trained, evaluated))
    if trained.get("repository") != evaluated.get("repository") or (
        before
        and now
        and not any(
            a.is_relative_to(b) or b.is_relative_to(a) for a in before for b in now
        )  # fmt: skip
    ):
        return False
    dividing = ("held_out", "validation_split", "validation_path", "split", "text_column")
    names = dividing if trained["kind"] != "pg19" else ()  # its splits are the publisher's
    return before != now or any(trained.get(name) != evaluated.get(name) for name in names)


def _places(path: str | list[str] | None) -> set[Path]:
    paths = [path] if isinstance(path, str) else path or []
    return {Path(each).expanduser().resolve() for each in paths}


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that came after the run was recorded."""
    kind = recorded["data"]["kind"]
    node = compose_node("train", [f"data={kind}", "logger=none"])
    groups = ("data", "evaluation", "trainer", "logger", "attention")
    defaults = resolve(node)
    known = {k: v for k, v in recorded.items() if k != "injection_layer"}  # of earlier versions
    return known | {name: defaults[name] | recorded.get(name, {}) for name in groups}


def _require_plain(override: Override, run: str) -> None:
    line = override.input_line
    if override.is_sweep_override():
        raise ConfigError(
            f"{line} gives several values; unimem-eval takes one for each setting: "
            f"unimem-sweep study.mode=evaluate base={run} {line}"
        )
    if override.type is None or override.is_add() or override.is_delete() or override.package:
        raise ConfigError(f"{line}: write name=value")


def _refusal(override: Override, budgets: set[str], values: dict[str, Any], run: str) -> str:
    """Return why a setting cannot change, or which one was meant."""
    line, key = override.input_line, override.key_or_group
    can = [*budgets, *(f"{g}.{n}" for g in (*GROUPS, "evaluation") for n in values[g])]
    can += [*GROUPS, "attention.backend", "trainer.accelerator", "trainer.threads"]
    group, _, name = key.partition(".")
    trained = key in values or name.partition(".")[0] in values.get(group, {})
    trained = trained or key in ("method", "profile", "experiment")
    if not trained and (near := difflib.get_close_matches(key, can, 2, 0.7)):
        return f"{line}: there is no such setting; did you mean {' or '.join(near)}?"
    what = (
        "is part of what the weights were trained with" if trained else "is no setting of this run"
    )
    options = key in ("method", "injection_layer") or name.partition(".")[0] in DIMENSIONS
    other = f"; for other options of memory: unimem-sweep study.mode=evaluate base={run} {line}"
    return (
        f"{line}: {key} {what}. unimem-eval can change data, evaluation.*, logger, "
        "attention.backend, trainer.accelerator, trainer.threads and the budgets of this memory: "
        f"{', '.join(sorted(name.removeprefix('memory.') for name in budgets))} (as memory.NAME)"
        f"{other if options else ''}"
    )
