"""The runs whose weights cells start from, if a study says what they are made of."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from unimem.config import ConfigError, compose_node
from unimem.paths import config_root
from unimem.studies.cells import Cell, Draft, SweepOptions, make_draft, parse
from unimem.studies.grid import Combination, labels
from unimem.studies.recorded_run import recorded_run

REACH_BASE = (
    "profile",
    "logger",
    "data.cache",
    "trainer.threads",
    "trainer.accelerator",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
)
"""Settings that a base run takes from the command line as its cells do.

They say at which scale and on what all of it runs, and how it is recorded; what is studied stays as
the study file has it. How many devices there are, and their precision, is no such setting: the one
changes how many rows a step reads, the other every number.
"""


class Bases:
    """The base run of every cell.

    Args:
        entries: the `base` of a study file; None if it has none.
        first: overrides that come before the entries.
        given: the command line.
        optional: names among `first` of settings that a base may lack, and then goes without.
    """

    def __init__(
        self,
        entries: Sequence[str] | None,
        first: Sequence[str],
        given: Mapping[str, Override],
        optional: Collection[str] = (),
    ):
        entries = entries or ()
        self._exist = bool(entries)
        self._own = _lines([*first, *(entry for entry in entries if "=" in entry)])
        self._followed = [entry for entry in entries if "=" not in entry]
        self._given = [key for key in given if under(key, REACH_BASE)]
        self._optional = [*self._given, *(key for key in optional if key in self._own)]

    def follows(self, key: str) -> bool:
        """Whether an override of this name reaches the base."""
        return under(key, (*self._followed, *self._given))

    def without_model(self, combination: Combination) -> Combination:
        """Leave out what is said of the model if it is said to the base."""
        return {
            key: line
            for key, line in combination.items()
            if key != "base" and not (under(key, ("model",)) and self.follows(key))
        }

    def of(self, found: Sequence[Combination], options: SweepOptions) -> list[Cell | None]:
        """Return the base of each combination, signed. Raises `ConfigError`."""
        made = self._made([c for c in found if "base" not in c], options) if self._exist else {}
        for line in dict.fromkeys(c["base"] for c in found if "base" in c):
            made[line,] = recorded_run(Path(str(parse([line])["base"].value())))
        return [made.get(self._key(combination)) for combination in found]

    def _key(self, combination: Combination) -> tuple[str, ...]:
        if "base" in combination:
            return (combination["base"],)
        return tuple(self._overrides(combination).values())

    def _made(
        self, found: Sequence[Combination], options: SweepOptions
    ) -> dict[tuple[str, ...], Cell]:
        """Make the base runs of a study file; those that are the same run are one."""
        distinct = {self._key(combination): self._overrides(combination) for combination in found}
        names = labels(list(distinct.values()), "")
        try:
            self._require_known(found)
            drafts = [
                _draft(f"base {name}".strip(), overrides, self._optional)
                for name, overrides in zip(names, distinct.values(), strict=True)
            ]
            made = [draft.sign(options) for draft in drafts]
        except ConfigError as error:
            raise ConfigError(f"base: {error}") from None
        first = {cell.signature: cell for cell in reversed(made)}
        return {key: first[cell.signature] for key, cell in zip(distinct, made, strict=True)}

    def _overrides(self, combination: Combination) -> dict[str, str]:
        followed = {key: line for key, line in combination.items() if self.follows(key)}
        return self._own | followed

    def _require_known(self, found: Sequence[Combination]) -> None:
        """Refuse an entry that names nothing: it would change no base run."""
        keys = {key for combination in found for key in combination}
        own = (line for key, line in self._own.items() if key not in self._optional)
        node = compose_node("train", list(own))
        for entry in self._followed:
            if not (is_setting(node, entry) or any(under(key, (entry,)) for key in keys)):
                raise ConfigError(
                    f"{entry} is not a setting; an entry is name=value, or the name of a setting "
                    "or group that is as in the cell"
                )


def _lines(entries: Sequence[str]) -> dict[str, str]:
    """Return each override under its name. Raises `ConfigError`."""
    try:
        own = parse(entries)
    except ConfigError as error:
        raise ConfigError(f"base: {error}") from None
    for override in own.values():
        if override.is_sweep_override():
            raise ConfigError(
                f"base: {override.input_line} gives several values; vary the setting, and name it "
                "without a value"
            )
    return {key: override.input_line or "" for key, override in own.items()}


def _draft(label: str, overrides: Mapping[str, str], given: Sequence[str]) -> Draft:
    """Compose a base; what the command line says of settings that it lacks does not reach it."""
    own = {key: line for key, line in overrides.items() if key not in given}
    node = compose_node("train", list(own.values()))
    return make_draft(
        label, [x for key, x in overrides.items() if key in own or is_setting(node, key)]
    )


def under(key: str, names: Sequence[str]) -> bool:
    """Whether a setting is one of these, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def is_setting(node: DictConfig, name: str) -> bool:
    """Whether `name` is a group, a setting or a node of settings."""
    if (config_root() / "conf" / name).is_dir():
        return True
    value = OmegaConf.to_container(node)
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
