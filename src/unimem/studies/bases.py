"""The runs whose weights cells start from, if a study says what they are made of."""

from collections.abc import Collection, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unimem.config import ConfigError, compose_node
from unimem.overrides import Overrides, is_under, text_of
from unimem.paths import config_root
from unimem.studies.cells import Cell, Draft, SweepOptions, make_draft, parse
from unimem.studies.grid import labels
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
        first: Overrides,
        given: Overrides,
        optional: Collection[str] = (),
    ):
        entries = entries or ()
        self._exist = bool(entries)
        self._own = first | _with_values([entry for entry in entries if "=" in entry])
        self._followed = [entry for entry in entries if "=" not in entry]
        self._given = given.under(REACH_BASE)
        self._optional = [*self._given, *(key for key in optional if key in self._own)]

    def follows(self, key: str) -> bool:
        """Whether an override of this name reaches the base."""
        return is_under(key, (*self._followed, *self._given))

    def own(self, combination: Overrides) -> Overrides:
        """Return the overrides of the cell itself: settings of the model may be its base's."""
        model = filter(self.follows, combination.under(("model",)))
        return combination.without(("base", *model))

    def of(self, found: Sequence[Overrides], options: SweepOptions) -> list[Cell | None]:
        """Return the base of each combination, signed. Raises `ConfigError`."""
        made = self._made([c for c in found if "base" not in c], options) if self._exist else {}
        runs = {text_of(c["base"]): c["base"] for c in found if "base" in c}
        for line, run in runs.items():
            made[line,] = recorded_run(Path(str(run.value())))
        return [made.get(self._key(combination)) for combination in found]

    def _key(self, combination: Overrides) -> tuple[str, ...]:
        if "base" in combination:
            return (text_of(combination["base"]),)
        return self._overrides(combination).lines

    def _made(
        self, found: Sequence[Overrides], options: SweepOptions
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

    def _overrides(self, combination: Overrides) -> Overrides:
        return self._own | combination.under((*self._followed, *self._given))

    def _require_known(self, found: Sequence[Overrides]) -> None:
        """Refuse an entry that names nothing: it would change no base run."""
        keys = {key for combination in found for key in combination}
        node = compose_node("train", _named(self._own, self._optional).lines)
        for entry in self._followed:
            if not (is_setting(node, entry) or any(is_under(key, (entry,)) for key in keys)):
                raise ConfigError(
                    f"{entry} is not a setting; an entry is name=value, or the name of a setting "
                    "or group that is as in the cell"
                )


def _with_values(entries: Sequence[str]) -> Overrides:
    """Parse the entries that have a value. Raises `ConfigError`."""
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
    return own


def _draft(label: str, overrides: Overrides, optional: Collection[str]) -> Draft:
    """Compose a base, without those of the `optional` overrides whose setting it lacks."""
    node = compose_node("train", _named(overrides, optional).lines)
    lacking = [key for key in optional if not is_setting(node, key)]
    return make_draft(label, _named(overrides, lacking))


def _named(overrides: Overrides, left_out: Collection[str]) -> Overrides:
    return Overrides(o for key, o in overrides.items() if key not in left_out)


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
