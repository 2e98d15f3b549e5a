"""Which variables of the environment `${oc.env:NAME}` may put into settings.

Settings are recorded, mirrored to W&B and asked for at the hub; a study file or an options folder
of somebody else must not be able to send a key there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

VARIABLES = (
    "HOME", "USER", "LOGNAME", "HOSTNAME", "PWD", "TMPDIR", "SCRATCH", "WORK", "DATA",
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "SLURM_*",
)  # fmt: skip
"""What may be read; a `*` stands for any ending that names no secret."""

_SECRET = re.compile(r"(key|token|secret|passw(or)?d|passphrase|credentials?|jwt)", re.IGNORECASE)


class RefusedVariableError(ValueError):
    """A variable of the environment that no setting may hold."""

    def __init__(self, name: str):
        super().__init__(
            f"${{oc.env:{name}}}: this variable cannot be put into a setting, which is recorded; "
            f"only {', '.join(VARIABLES)} can: write the value itself"
        )


_guarded: ContextVar[bool] = ContextVar("guarded", default=False)


@contextmanager
def guarded() -> Iterator[None]:
    """Let interpolations read no variable but `VARIABLES`; others raise `RefusedVariableError`.

    Outside of it OmegaConf's `oc.env` is as ever, for programs that have settings of their own.
    """
    before = _guarded.set(True)
    try:
        yield
    finally:
        _guarded.reset(before)


def refusal(error: BaseException | None) -> RefusedVariableError | None:
    """Find the refused variable that an error of OmegaConf or Hydra comes from, if one does."""
    while error is not None:
        if isinstance(error, RefusedVariableError):
            return error
        error = error.__cause__ or error.__context__
    return None


def require_readable(node: Any) -> None:
    """Raise `RefusedVariableError` if an interpolation of a node reads a refused variable."""
    with guarded():
        for place in _calls(OmegaConf.to_container(node, resolve=False)):
            try:
                OmegaConf.select(node, place)
            except (OmegaConfBaseException, ValueError, RecursionError) as error:
                if found := refusal(error):
                    raise found from None  # else it is told when the settings are resolved


def _calls(value: Any, place: str = "") -> Iterator[str]:
    """Return the places of texts that may call a resolver."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _calls(entry, f"{place}[{key}]")
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from _calls(entry, f"{place}[{i}]")
    elif isinstance(value, str) and "${" in value and ":" in value:
        yield place


def _may_be_read(name: str) -> bool:
    known = any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in VARIABLES
    )
    return known and not _SECRET.search(name)


def _variable(name: str, *default: Any) -> str | None:
    if _guarded.get() and not _may_be_read(str(name)):
        raise RefusedVariableError(str(name))
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _variable, replace=True)
