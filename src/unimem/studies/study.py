"""A study: every run of it, composed and checked before the first starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hydra.core.override_parser.types import Override

from unimem.config import Config, ConfigError, parse_overrides, repeated
from unimem.overrides import literal
from unimem.studies.bases import REACH_BASE, Bases, under
from unimem.studies.cells import (
    Cell,
    Draft,
    SweepOptions,
    is_option,
    lines_of,
    make_draft,
    parse,
    read_options,
)
from unimem.studies.errors import make_all
from unimem.studies.evaluate import inherit, require_followed, require_trained
from unimem.studies.grid import MOST_CELLS, Combination, combinations, labels
from unimem.studies.parent_cells import CHOOSING, choose
from unimem.studies.study_file import BaseStudy, StudyFile, read_study_file

logger = logging.getLogger(__name__)

Overrides = dict[str, Override]
Mode = Literal["train", "evaluate"]

MODE = "study.mode"
SEGMENTS = "trainer.segments_per_step"
REFUSED = {
    "name": "cells are named by their settings",
    "resume": "cells are continued by themselves",
    "hydra": "a study varies what stands in vary:",
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep that can run: at least one cell, all of them valid, none twice.

    Args:
        options: how it runs and what it is called.
        arguments: the command line that it came from.
        cells: those that vary.
        fields: what its file says beside the overrides.
    """

    options: SweepOptions
    arguments: tuple[str, ...]
    cells: tuple[Cell, ...]
    fields: dict[str, Any]

    @property
    def bases(self) -> tuple[Cell, ...]:
        """The runs that cells start from, each once, and after its own base."""
        found: dict[str, Cell] = {}

        def add(base: Cell | None) -> None:
            if base is not None:
                add(base.base)
                found.setdefault(base.signature, base)

        for cell in self.cells:
            add(cell.base)
        return tuple(found.values())

    @property
    def runs(self) -> tuple[Cell, ...]:
        """All that has to be there in the end, the base runs first."""
        return (*self.bases, *self.cells)


@dataclass(frozen=True)
class Start:
    """A cell before it is composed: what it is called, starts from, and says itself."""

    label: str
    base: Cell | None
    own: Combination

    def draft(self, mode: Mode) -> Draft:
        """Compose and check it. Raises `ConfigError`."""
        if mode == "train":
            return make_draft(self.label, list(self.own.values()), self.base)
        if self.base is None:
            raise ConfigError(
                f"{MODE}=evaluate reads with weights that are trained: name a finished run, "
                "base=outputs/runs/NAME, or give the study file a base:"
            )
        draft = make_draft(self.label, list(inherit(self.base, self.own).values()), self.base)
        require_trained(draft)
        return draft


def expand(arguments: Sequence[str]) -> Study:
    """Turn the arguments of `unimem-sweep` into a study, without torch.

    Raises `ConfigError` with the problems of all cells, or if there are none.
    """
    for line in repeated(parse_overrides(arguments)):
        logger.warning(line)
    given = parse(arguments)
    file = _file(given)
    fixed = parse(file.fixed)
    mode = _mode([overrides.pop(MODE, None) for overrides in (given, fixed)])
    options = _options(file, fixed, given)
    starts = _starts(file, fixed, given, options, mode)
    fields = {key: value for key, value in file.fields.items() if key != "base"}
    return Study(
        options=options,
        arguments=tuple(arguments),
        cells=_cells(starts, mode, options),
        fields={"mode": mode, "profile": file.profile} | fields,
    )


def _file(given: Overrides) -> StudyFile:
    """Take the study file out of the command line, and the profile if the file has any."""
    name = given.pop("sweeps").value() if "sweeps" in given else None
    if name is None:
        return StudyFile(fields={})
    profile = given.get("profile")
    if profile is None:
        return read_study_file(str(name))
    several = profile.is_sweep_override()
    file = read_study_file(str(name), None if several else str(profile.value()))
    if file.profiles and several:
        raise ConfigError(f"{profile.input_line}: profile takes one value")
    if file.profiles:
        del given["profile"]
    return file


def _mode(given: Sequence[Override | None]) -> Mode:
    """Return the mode that comes first, on the command line or in the file."""
    for override in given:
        match None if override is None else override.value():
            case None:
                continue
            case "train" | "evaluate" as mode:
                return mode
            case other:
                raise ConfigError(f"{MODE}={other} is not a mode; choose train or evaluate")
    return "train"


def _options(file: StudyFile, fixed: Overrides, given: Overrides) -> SweepOptions:
    options = read_options(SweepOptions, "sweep", fixed | given)
    if file.profile in (None, *file.profiles[:1]) or "study" in given:
        return options
    return options.model_copy(update={"study": f"{options.study}-{file.profile}"})


def _starts(
    file: StudyFile, fixed: Overrides, given: Overrides, options: SweepOptions, mode: Mode
) -> list[Start]:
    """Return for every cell its base run and what it says itself."""
    profile = [] if file.profile is None else [f"profile={file.profile}"]
    other = file.base if isinstance(file.base, BaseStudy) and "base" not in given else None
    own = given if other is None else {k: o for k, o in given.items() if k not in CHOOSING}
    grids = [parse(profile) | fixed | parse(grid) | own for grid in file.grids]
    for key in {key for grid in grids for key in grid}:
        if reason := REFUSED.get(key.split(".")[0]):
            raise ConfigError(f"{key} cannot be set in a sweep: {reason}")
    found = combinations(
        [{k: o for k, o in grid.items() if not is_option(SweepOptions, k)} for grid in grids]
    )
    entries = file.base if isinstance(file.base, tuple) else None
    # What says at which scale all runs are holds for the base too, wherever it stands.
    reach = {key: o.input_line or "" for key, o in fixed.items() if under(key, REACH_BASE)}
    bases = Bases(entries, [*profile, *reach.values()], given, reach)
    if mode == "evaluate":
        require_followed(found, bases)
    if other is None:
        names = labels(found, "the run")
        return [
            Start(name, base, bases.without_model(combination))
            for name, base, combination in zip(names, bases.of(found, options), found, strict=True)
        ]
    if mode == "train":
        raise ConfigError(f"base: cells of sweeps={other.sweeps} are for {MODE}: evaluate")
    first = [*profile, *reach.values()]
    cells = choose(_other_cells(other, first, given, options), other, given)
    if len(cells) * len(found) > MOST_CELLS:
        raise ConfigError(
            f"a sweep of {len(cells) * len(found):,} cells, {len(found):,} for each of "
            f"{len(cells):,} of sweeps={other.sweeps}; at most {MOST_CELLS:,} are made"
        )
    pairs = [(cell, combination) for cell in cells for combination in found]
    names = labels(
        [lines_of(cell.overrides) | combination for cell, combination in pairs], "the run"
    )
    return [Start(name, *pair) for name, pair in zip(names, pairs, strict=True)]


def _other_cells(
    base: BaseStudy, first: Sequence[str], given: Overrides, options: SweepOptions
) -> tuple[Cell, ...]:
    """Return the cells of the study that `base` names, at the same scale and place."""
    reach = [o.input_line or "" for key, o in given.items() if under(key, REACH_BASE)]
    place = [f"output={literal(options.output)}", f"dry_run={literal(options.dry_run)}"]
    return expand([f"sweeps={literal(base.sweeps)}", *first, *reach, *place]).cells


def _with_equal_tokens(starts: Sequence[Start], drafts: Sequence[Draft]) -> list[Draft]:
    """Let every cell read as many segments in a step as the method that needs most.

    Methods whose gradient reaches further back would else be trained on more tokens in as many
    steps. A cell whose `trainer.segments_per_step` is set, be it to null, keeps it.
    """
    free = [
        i
        for i, draft in enumerate(drafts)
        if draft.config.trainer.segments_per_step is None
        and draft.config.trainer.max_steps != 0
        and SEGMENTS not in starts[i].own
    ]
    needed = {drafts[i].config.segments_per_step() for i in free}
    found = list(drafts)
    if len(needed) > 1:
        line = f"{SEGMENTS}={max(needed)}"
        logger.info(
            "%s in every cell, so that all are trained on as many tokens: alone they take %d to "
            "%d; set it to take another number, or to null for each method's own",
            line, min(needed), max(needed),
        )  # fmt: skip
        for i in free:
            overrides = [*starts[i].own.values(), line]
            found[i] = make_draft(drafts[i].label, overrides, drafts[i].base)
    tokens = {_tokens(draft.config) for draft in found} - {0}
    if len(tokens) > 1:
        logger.info(
            "cells are trained on different numbers of tokens: up to %s to %s",
            f"{min(tokens):,}", f"{max(tokens):,}",
        )  # fmt: skip
    return found


def _tokens(config: Config) -> int:
    """Return the most tokens that training reads on one device; 0 if it trains for an epoch."""
    trainer = config.trainer
    rows = trainer.batch_size * trainer.accumulate
    segments = rows * config.segments_per_step() * (trainer.max_steps or 0)
    return segments * config.memory.segment_length


def _cells(starts: Sequence[Start], mode: Mode, options: SweepOptions) -> tuple[Cell, ...]:
    names = [start.label for start in starts]
    drafts = make_all(names, lambda i: starts[i].draft(mode))
    if mode == "train":
        drafts = _with_equal_tokens(starts, drafts)
    signed = make_all(names, lambda i: drafts[i].sign(options))
    cells: dict[str, Cell] = {}
    for cell in signed:
        same = cells.setdefault(cell.signature, cell)
        if same is not cell:
            logger.warning(
                "%s is the same run as %s, and is one cell with it", cell.label, same.label
            )
    return tuple(cells.values())
