"""Which settings may change when a run is continued."""

import hashlib
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from unimem.config import ConfigError

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    "output",
    "study",
    "name",
    "resume",
    "logger",
    "memory.device",
    "method.title",
    "method.paper",
    "method.exact",
    "method.note",
    "model.parameters",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "data.cache",
)
"""Settings, or nodes of settings, that cannot change a number.

`trainer.threads` does: it changes the last bits."""

MAY_DIFFER = (*WITHOUT_EFFECT, "evaluation", "trainer.keep_best", "trainer.threads")
"""Settings, or nodes of settings, that a continued run may change."""


class FinishedRunError(ConfigError):
    """A finished run was given again with other settings; `folder` is its folder."""

    def __init__(self, message: str, folder: Path):
        super().__init__(message)
        self.folder = folder


def require_same(
    before: dict[str, Any], now: dict[str, Any], folder: Path, *, resume: str, finished: bool
) -> None:
    """Compare the settings that a run began with to those that it is given again with.

    What may change is logged. `resume` is how the user asked for it.

    Raises `ConfigError` with all differences that are not allowed, `FinishedRunError` if the run
    has come to its end.
    """
    old, new = _flat(before), _flat(now)
    changed = {key for key in old | new if old.get(key, _ABSENT) != new.get(key, _ABSENT)}
    allowed = {key for key in changed if among(key, MAY_DIFFER)}
    again = sorted(key for key in changed if among(key, ("evaluation",)))
    for key in sorted(allowed):
        logger.info("%s: %s, was %s", key, new.get(key, _ABSENT), old.get(key, _ABSENT))
    if refused := sorted(changed - allowed):
        lines = [f"  {k}: {new.get(k, _ABSENT)}, was {old.get(k, _ABSENT)}" for k in refused]
        if finished:
            head = f"{resume}: {folder} is finished, and began with other settings"
            raise FinishedRunError("\n".join([head, *lines]), folder)
        head = (
            f"{resume}: these settings differ from those that {folder} began with; "
            "set them as they were, or start a run of another name, name=..."
        )
        tail = f"only these may differ: {', '.join(MAY_DIFFER)}"
        raise ConfigError("\n".join([head, *lines, tail]))
    if finished and again:
        logger.warning(
            "%s is finished: %s not used; unimem-eval run=%s reads with its weights again",
            folder,
            f"{', '.join(again)} {'is' if len(again) == 1 else 'are'}",
            folder,
        )


def among(key: str, names: Collection[str]) -> bool:
    """Whether a setting is one of these, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def settings_digest(settings: dict[str, Any]) -> str:
    """Return the sha256 of the settings that a continued run must not change."""
    fixed = {key: value for key, value in _flat(settings).items() if not among(key, MAY_DIFFER)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


_ABSENT = "(absent)"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
