"""The cells of a study: every run of it, composed and checked before the first starts."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from unimem.config import Config, ConfigError, Name, compose_node, resolve, validate
from unimem.settings import Count, PretrainedModel, Settings, describe
from unimem.studies.file import StudyFile, literal, read_study_file
from unimem.studies.signature import CELLS, data_digest, signature
from unimem.training.folder import MODEL, readable_name

logger = logging.getLogger(__name__)

REFUSED = {
    "name": "cells are named by their settings",
    "resume": "cells are continued by themselves",
    "hydra": "a study varies what stands in vary:",
}


class SweepOptions(Settings):
    """What `conf/sweep.yaml` says beside the settings of a run."""

    study: Name
    output: Annotated[str, Field(min_length=1)]
    jobs: Count | None
    launcher: Literal["local", "slurm"]
    dry_run: bool
    slurm: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study.

    Args:
        label: what sets it apart in its study.
        overrides: as given to `unimem-train`, which adds where the run is recorded.
        config: the settings, checked.
        signature: of all that decides its numbers.
        folder: where it is recorded, whatever the study.
        base: the run whose weights it starts from.
    """

    label: str
    overrides: tuple[str, ...]
    config: Config
    signature: str
    folder: Path
    base: "Cell | None" = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep that can run: at least one cell, all of them valid, none twice.

    Args:
        options: how it runs and what it is called.
        arguments: the command line that it came from.
        cells: those that vary.
        base: the run that these start from.
        fields: what its file says beside the overrides.
    """

    options: SweepOptions
    arguments: tuple[str, ...]
    cells: tuple[Cell, ...]
    base: Cell | None
    fields: dict[str, Any]

    @property
    def runs(self) -> tuple[Cell, ...]:
        """All that is to be trained, the base run first."""
        return self.cells if self.base is None else (self.base, *self.cells)


def expand(arguments: Sequence[str]) -> Study:
    """Turn the arguments of `unimem-sweep` into a study, without torch.

    Raises `ConfigError` with the problems of all cells, or if there are none.
    """
    given = _parse(arguments)
    file = StudyFile(fields={})
    if "sweeps" in given and (name := given.pop("sweeps").value()) is not None:
        file = read_study_file(str(name))
    fixed = _parse(file.fixed)
    grids = [fixed | _parse(grid) | given for grid in file.grids]
    for key in itertools.chain.from_iterable(grids):
        if reason := REFUSED.get(key.split(".")[0]):
            raise ConfigError(f"{key} cannot be set in a sweep: {reason}")
    options = _options(fixed | given)
    base = None if file.base is None else _base(file.base, options)
    combinations = [combination for grid in grids for combination in _combinations(grid)]
    if not combinations:
        empty = {f"{o.input_line}" for grid in grids for o in grid.values() if not _values(o)}
        raise ConfigError(f"a sweep of 0 cells: no values in {', '.join(sorted(empty))}")
    cells = _cells(combinations, options, base)
    return Study(
        options=options, arguments=tuple(arguments), cells=cells, base=base, fields=file.fields
    )


def _parse(lines: Sequence[str]) -> dict[str, Override]:
    """Parse overrides; of two of one name the later one counts."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(lines))
    except HydraException as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; write name=value") from None
    return {override.key_or_group: override for override in parsed}


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} cannot be listed; use range(), choice() or a,b")
    try:
        values = list(override.sweep_string_iterator())
    except HydraException:
        raise ConfigError(f"{override.input_line}: name the values, as in a,b") from None
    return [f"{override.get_key_element()}={value}" for value in values]


def _options(overrides: Mapping[str, Override]) -> SweepOptions:
    chosen = [o for key, o in overrides.items() if _is_option(key)]
    for override in chosen:
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: {override.key_or_group} takes one value")
    node = compose_node("sweep", [override.input_line or "" for override in chosen])
    values = {key: node[key] for key in SweepOptions.model_fields}
    plain = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(values)))
    try:
        return SweepOptions.model_validate(plain)
    except ValidationError as error:
        lines = [describe(cast(dict[str, Any], item)) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _is_option(key: str) -> bool:
    return key.split(".")[0] in SweepOptions.model_fields


def _combinations(grid: Mapping[str, Override]) -> Iterable[dict[str, str]]:
    axes = {key: _values(override) for key, override in grid.items() if not _is_option(key)}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _base(overrides: Sequence[str], options: SweepOptions) -> Cell:
    try:
        node = compose_node("train", overrides)
        return _cell("base", overrides, validate(node), node, options, None)
    except (ValueError, OSError) as error:
        raise ConfigError(f"base: {error}") from None


def _cells(
    combinations: Sequence[dict[str, str]], options: SweepOptions, base: Cell | None
) -> tuple[Cell, ...]:
    problems: dict[str, list[str]] = defaultdict(list)
    composed: list[tuple[str, list[str], DictConfig, Config]] = []
    for label, overrides in zip(_labels(combinations), combinations, strict=True):
        try:
            lines = [*overrides.values(), *_start_from(base, overrides)]
            node = compose_node("train", lines)
            composed.append((label, lines, node, validate(node)))
        except ConfigError as error:
            for line in str(error).removeprefix("invalid configuration:\n").splitlines():
                problems[line.strip()].append(label)
    _raise(problems, len(combinations))
    cells: dict[str, Cell] = {}
    for label, lines, node, config in composed:
        try:
            cell = _cell(label, lines, config, node, options, base)
        except (ValueError, OSError) as error:
            problems[str(error)].append(label)
            continue
        same = cells.setdefault(cell.signature, cell)
        if same is not cell:
            logger.warning("%s is the same run as %s, and is one cell with it", label, same.label)
    _raise(problems, len(combinations))
    return tuple(cells.values())


def _cell(
    label: str,
    overrides: Sequence[str],
    config: Config,
    node: DictConfig,
    options: SweepOptions,
    base: Cell | None,
) -> Cell:
    identity = signature(resolve(node), data_digest(config.data))
    name = f"{readable_name(config)}-{identity[:12]}"
    return Cell(
        label=label,
        overrides=tuple(overrides),
        config=config,
        signature=identity,
        folder=Path(options.output) / CELLS / name,
        base=base,
    )


def _start_from(base: Cell | None, overrides: Mapping[str, str]) -> list[str]:
    """Give the overrides that make a cell start from the base run's weights."""
    if base is None:
        return []
    if "model" in overrides:
        raise ConfigError(f"{overrides['model']}: the model of a study with base: is its base's")
    model = base.config.model
    # bpe is the corpus's own tokenizer, which a model from scratch was trained with.
    tokenizer = model.tokenizer if isinstance(model, PretrainedModel) else "bpe"
    return [
        "model=hf",
        f"model.name={literal(str((base.folder / MODEL).resolve()))}",
        f"model.num_layers={literal(base.config.num_layers())}",
        f"model.tokenizer={literal(tokenizer)}",
    ]


def _labels(combinations: Sequence[dict[str, str]]) -> list[str]:
    keys = list(dict.fromkeys(itertools.chain.from_iterable(combinations)))
    varied = [key for key in keys if len({c.get(key) for c in combinations}) > 1]
    return [" ".join(c[key] for key in varied if key in c) or "the run" for c in combinations]


def _raise(problems: Mapping[str, list[str]], cells: int) -> None:
    """Tell all problems, each once, with the cells that have it."""
    if not problems:
        return
    lines = [
        line
        if len(labels) == cells
        else f"{line} ({labels[0]}{f' and {len(labels) - 1} more' if labels[1:] else ''})"
        for line, labels in problems.items()
    ]
    raise ConfigError("\n".join(["the sweep does not start:", *(f"  {line}" for line in lines)]))
