"""A cell: one run of a study, composed, checked and signed before it starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from unimem.config import (
    Config,
    ConfigError,
    Name,
    compose_node,
    parse_overrides,
    validate,
)
from unimem.interpolation import guarded
from unimem.overrides import Overrides, literal, text_of
from unimem.paths import group_files
from unimem.runs.folder import MODEL, readable_name
from unimem.runs.signature import CELLS, corpus_of, data_digest, signature
from unimem.settings import Count, PretrainedModel, Settings, describe
from unimem.training.vocabulary import require_same_vocabulary

logger = logging.getLogger(__name__)


class SweepOptions(Settings):
    """What `conf/sweep.yaml` says beside the settings of a run."""

    study: Name
    output: Annotated[str, Field(min_length=1)]
    jobs: Count | None
    launcher: str
    dry_run: bool
    launcher_settings: dict[str, Any] = {}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the settings of the command itself, with those of every launcher."""
        return (*cls.model_fields, *_launchers())

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of its runs in W&B."""
        return ()


def _launchers() -> list[str]:
    return [file.stem for file in group_files("launcher")]


Options = TypeVar("Options", bound=SweepOptions)


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
        problem: why it cannot start here, in a study that is only listed: its data is missing.
        tokenizer: what a cell that starts from this run's weights finds its tokenizer by.
    """

    label: str
    overrides: Overrides
    config: Config
    signature: str
    folder: Path
    base: "Cell | None" = None
    problem: str = ""
    tokenizer: str = "bpe"

    def first(self) -> "Cell":
        """Return the run that did not start from another: the cell itself, or its base's first."""
        return self if self.base is None else self.base.first()


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A cell that is composed and checked, and whose data was not looked at yet.

    `overrides` are its `own` and those that make it start from `base`.
    """

    label: str
    own: Overrides
    overrides: Overrides
    config: Config
    base: Cell | None

    def sign(self, options: SweepOptions) -> Cell:
        """Make the cell. Raises `ConfigError` if its data is missing, unless it is only listed."""
        problem, digest = "", ""
        try:
            digest = data_digest(self.config.data)
        except (ValueError, OSError) as error:
            problem = str(error)
            if not options.dry_run:
                raise ConfigError(problem) from None
        if not problem:
            self.require_vocabulary()
        identity = signature(self.config, digest)
        started_from = None if self.base is None else self.base.first().config.model
        name = f"{readable_name(self.config, started_from)}-{identity[:12]}"
        return Cell(
            label=self.label,
            overrides=self.overrides,
            config=self.config,
            signature=identity,
            folder=Path(options.output) / CELLS / name,
            base=self.base,
            problem=problem,
        )

    def require_vocabulary(self) -> None:
        """Refuse documents whose token ids are not those that the base's weights are trained on.

        Raises `ConfigError`.
        """
        base = self.base
        if base is None:
            return
        try:
            trained = corpus_of(base.config.data).vocabulary
            corpus, weights = corpus_of(self.config.data), str(base.folder / MODEL)
            require_same_vocabulary(trained, corpus, self.config.data, weights)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{self.label}: {error}") from None


def make_draft(label: str, own: Overrides, base: Cell | None = None) -> Draft:
    """Compose and check one run of `unimem-train`, which starts from `base` if there is one.

    Raises `ConfigError` with all that is wrong with it.
    """
    overrides = own if base is None else own | _start_from(base, own)
    node = compose_node("train", overrides.lines)
    if base is not None:
        # What a profile or an experiment says of a model from scratch is no longer asked for.
        unused = [f"~model.{key}" for key in node.model if key not in PretrainedModel.model_fields]
        if unused:
            _warn_of_other_model(node, base)
            overrides |= parse(unused)
            node = compose_node("train", overrides.lines)
    return Draft(label=label, own=own, overrides=overrides, config=validate(node), base=base)


def make_cell(
    label: str, lines: Sequence[str], options: SweepOptions, base: Cell | None = None
) -> Cell:
    """Compose, check and sign one run of `unimem-train`, which starts from `base` if there is one.

    Raises `ConfigError` with all that is wrong with it, its data included.
    """
    return make_draft(label, parse(lines), base).sign(options)


def parse(lines: Sequence[str]) -> Overrides:
    """Parse overrides. Raises `ConfigError` for one that cannot be read."""
    return Overrides(parse_overrides(lines))


def read_options(kind: type[Options], primary: str, overrides: Overrides) -> Options:
    """Read what a command itself is told: the fields of `kind` in `conf/<primary>.yaml`.

    Overrides of anything else are left out. Raises `ConfigError`.
    """
    chosen = overrides.under(kind.names())
    for key, override in chosen.items():
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: {key} takes one value")
    launcher = str(chosen["launcher"].value()) if "launcher" in chosen else "local"
    others = [name for name in _launchers() if name != launcher]
    if unused := chosen.under(others):
        (key, override), *_ = unused.items()
        raise ConfigError(
            f"{text_of(override)}: {key} is no setting of launcher={launcher}; leave it out, or "
            f"add launcher={key.partition('.')[0]}"
        )
    node = compose_node(primary, chosen.lines)
    try:
        with guarded():
            whole = cast(dict[str, Any], OmegaConf.to_container(node, throw_on_missing=True))
            values = {key: node[key] for key in kind.model_fields if key in whole}
            values["launcher_settings"] = node.get(str(node.launcher), {})
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    plain = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(values)))
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        lines = [describe(cast(dict[str, Any], item)) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _warn_of_other_model(node: DictConfig, base: Cell) -> None:
    """Warn if the model of a profile or experiment is not used, for the base has another."""
    own = base.first().config.model.model_dump()
    other = {key: node.model[key] for key in ("hidden_size", "num_heads") if key in node.model}
    if any(key in own and own[key] != value for key, value in other.items()):
        shown = ", ".join(f"model.{key}={value}" for key, value in other.items())
        logger.warning("%s of a profile or experiment is not used: the model is the base's", shown)


def _start_from(base: Cell, own: Overrides) -> Overrides:
    """Return the overrides that make a cell start from the base run's weights."""
    if "model" in own:
        raise ConfigError(f"{text_of(own['model'])}: the model of a study with base: is its base's")
    model = base.config.model
    tokenizer = model.tokenizer if isinstance(model, PretrainedModel) else base.tokenizer
    # a run of an older version does not name its model's own rate
    rate = model.learning_rate or base.config.trainer.learning_rate
    return parse(
        [
            "model=hf",
            f"model.name={literal(str((base.folder / MODEL).resolve()))}",
            f"model.num_layers={literal(base.config.num_layers())}",
            f"model.tokenizer={literal(tokenizer)}",
            f"model.learning_rate={literal(rate)}",
        ]
    )
