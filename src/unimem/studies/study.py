"""A study: every run of it, composed and checked before the first starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unimem.config import Config, ConfigError, parse_overrides, repeated
from unimem.overrides import Overrides, literal
from unimem.studies.bases import REACH_BASE, Bases
from unimem.studies.cells import Cell, Draft, SweepOptions, make_draft, parse, read_options
from unimem.studies.errors import make_all
from unimem.studies.evaluate import inherit, require_followed, require_trained
from unimem.studies.grid import MOST_CELLS, combinations, labels
from unimem.studies.parent_cells import CHOOSING, choose
from unimem.studies.study_file import BaseStudy, StudyFile, read_study_file

logger = logging.getLogger(__name__)

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


def expand(arguments: Sequence[str]) -> Study:
    """Turn the arguments of `unimem-sweep` into a study, without torch.

    Raises `ConfigError` with the problems of all cells, or if there are none.
    """
    for line in repeated(parse_overrides(arguments)):
        logger.warning(line)
    file, given = _file(parse(arguments))
    mode = _mode(file.fixed | given)
    file, given = replace(file, fixed=file.fixed.without((MODE,))), given.without((MODE,))
    options = _options(file, given)
    names, starts = _starts(file, given, options, mode)
    fields = {key: value for key, value in file.fields.items() if key != "base"}
    return Study(
        options=options,
        arguments=tuple(arguments),
        cells=_cells(names, starts, mode, options),
        fields={"mode": mode, "profile": file.profile} | fields,
    )


def _file(given: Overrides) -> tuple[StudyFile, Overrides]:
    """Return the study file, and the command line without it, and without a profile of the file."""
    name = given["sweeps"].value() if "sweeps" in given else None
    given = given.without(("sweeps",))
    if name is None:
        return StudyFile(fields={}), given
    profile = given.get("profile")
    if profile is None:
        return read_study_file(str(name)), given
    several = profile.is_sweep_override()
    file = read_study_file(str(name), None if several else str(profile.value()))
    if file.profiles and several:
        raise ConfigError(f"{profile.input_line}: profile takes one value")
    return file, given.without(("profile",)) if file.profiles else given


def _mode(given: Overrides) -> Mode:
    match given[MODE].value() if MODE in given else "train":
        case "train" | "evaluate" as mode:
            return mode
        case other:
            raise ConfigError(f"{MODE}={other} is not a mode; choose train or evaluate")


def _options(file: StudyFile, given: Overrides) -> SweepOptions:
    options = read_options(SweepOptions, "sweep", file.fixed | given)
    if file.profile in (None, *file.profiles[:1]) or "study" in given:
        return options
    return options.model_copy(update={"study": f"{options.study}-{file.profile}"})


def _starts(
    file: StudyFile, given: Overrides, options: SweepOptions, mode: Mode
) -> tuple[list[str], list[tuple[Cell | None, Overrides]]]:
    """Return the name of every cell; and its base run, with the overrides of the cell itself."""
    profile = parse([] if file.profile is None else [f"profile={file.profile}"])
    other = file.base if isinstance(file.base, BaseStudy) and "base" not in given else None
    own = given if other is None else given.without(CHOOSING)
    grids = [profile | file.fixed | grid | own for grid in file.grids]
    for key in {key for grid in grids for key in grid}:
        if reason := REFUSED.get(key.split(".")[0]):
            raise ConfigError(f"{key} cannot be set in a sweep: {reason}")
    found = combinations([grid.without(SweepOptions.names()) for grid in grids])
    entries = file.base if isinstance(file.base, tuple) else None
    # Settings of scale hold for the base too, wherever the file has them.
    reach = file.fixed.under(REACH_BASE)
    bases = Bases(entries, profile | reach, given, reach)
    if mode == "evaluate":
        require_followed(found, bases)
    if other is None:
        own_of_each = map(bases.own, found)
        return labels(found, "the run"), [*zip(bases.of(found, options), own_of_each, strict=True)]
    if mode == "train":
        raise ConfigError(f"base: cells of sweeps={other.sweeps} are for {MODE}: evaluate")
    cells = choose(_other_cells(other, profile | reach, given, options), other, given)
    if len(cells) * len(found) > MOST_CELLS:
        raise ConfigError(
            f"a sweep of {len(cells) * len(found):,} cells, {len(found):,} for each of "
            f"{len(cells):,} of sweeps={other.sweeps}; at most {MOST_CELLS:,} are made"
        )
    pairs = [(cell, combination) for cell in cells for combination in found]
    return labels([cell.overrides | own for cell, own in pairs], "the run"), [*pairs]


def _other_cells(
    base: BaseStudy, first: Overrides, given: Overrides, options: SweepOptions
) -> tuple[Cell, ...]:
    """Return the cells of the study that `base` names, at the same scale, in the same output."""
    place = [f"output={literal(options.output)}", f"dry_run={literal(options.dry_run)}"]
    shared = (first | given.under(REACH_BASE)).lines
    return expand([f"sweeps={literal(base.sweeps)}", *shared, *place]).cells


def _draft(label: str, base: Cell | None, own: Overrides, mode: Mode) -> Draft:
    """Compose and check a cell. Raises `ConfigError`."""
    if mode == "train":
        return make_draft(label, own, base)
    if base is None:
        raise ConfigError(
            f"{MODE}=evaluate reads with weights that are trained: name a finished run, "
            "base=outputs/runs/NAME, or give the study file a base:"
        )
    draft = make_draft(label, inherit(base, own), base)
    require_trained(draft)
    return draft


def _with_equal_tokens(drafts: Sequence[Draft]) -> list[Draft]:
    """Let every cell read as many segments in a step as the method that needs most.

    Methods whose gradient reaches further back would else be trained on more tokens in as many
    steps. A cell whose `trainer.segments_per_step` is set, be it to null, keeps it.
    """
    free = [
        i
        for i, draft in enumerate(drafts)
        if draft.config.trainer.segments_per_step is None
        and draft.config.trainer.max_steps != 0
        and SEGMENTS not in draft.own
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
            own = drafts[i].own | parse([line])
            found[i] = make_draft(drafts[i].label, own, drafts[i].base)
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


def _cells(
    names: Sequence[str],
    starts: Sequence[tuple[Cell | None, Overrides]],
    mode: Mode,
    options: SweepOptions,
) -> tuple[Cell, ...]:
    drafts = make_all(names, lambda i: _draft(names[i], *starts[i], mode))
    if mode == "train":
        drafts = _with_equal_tokens(drafts)
    signed = make_all(names, lambda i: drafts[i].sign(options))
    cells: dict[str, Cell] = {}
    for cell in signed:
        same = cells.setdefault(cell.signature, cell)
        if same is not cell:
            logger.warning(
                "%s is the same run as %s, and is one cell with it", cell.label, same.label
            )
    return tuple(cells.values())
