"""From overrides to a validated configuration, without torch: a typo answers in a second."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from yaml import YAMLError

from unimem.data.settings import DataSettings
from unimem.interpolation import guarded, refusal, require_readable
from unimem.memory.depth import Place, in_order
from unimem.memory.plan import DIMENSIONS, PlanError, field_types, known_option
from unimem.memory.settings import MemorySettings, unused_knobs, usual
from unimem.memory.unread import unread
from unimem.overrides import OverrideError, as_written, parse_lines, quoted, shown
from unimem.paths import config_root, own_config
from unimem.settings import (
    AttentionSettings,
    EvaluationSettings,
    LoggerSettings,
    MethodSettings,
    ModelSettings,
    PretrainedModel,
    Settings,
    TrainerSettings,
    as_declared,
    describe,
    known_layers,
    parts,
)
from unimem.words import counted
from unimem.yaml_file import load_yaml

logger = logging.getLogger(__name__)

NAME_RULE = (
    "a name has only letters a-z and A-Z, digits and . _ + -, begins with a letter, a digit or _, "
    "and has at most 128 characters"
)


def _is_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}", text):
        raise ValueError(NAME_RULE)
    return text


Name = Annotated[str, AfterValidator(_is_name)]
"""The name of a folder that a run or study makes."""


def _as_resume(value: Any) -> Any:
    known = {"true": True, "false": False, "auto": "auto"}
    if isinstance(value, bool | str) and str(value).lower() in known:
        return known[str(value).lower()]
    raise ValueError(
        "write true to continue the run of that name, auto to start it or continue it, or false"
    )


Resume = Annotated[bool | Literal["auto"], BeforeValidator(_as_resume)]
"""Whether a run is continued: `auto` starts it if it was not begun."""


class ConfigError(CompactHydraException, ValueError):
    """What is wrong with a configuration, one line for each problem."""


class Config(Settings):
    """Everything a run needs to know, checked."""

    seed: Annotated[int, Field(ge=0)]
    output: Annotated[str, Field(min_length=1)]
    study: Name
    name: Name | None
    resume: Resume
    method: MethodSettings
    memory: MemorySettings
    model: ModelSettings
    data: DataSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    logger: LoggerSettings
    attention: AttentionSettings = AttentionSettings()

    def record(self) -> dict[str, Any]:
        """Return the settings as plain values, as a run records them: those that were set."""
        return self.model_dump(exclude_unset=True)

    def num_layers(self) -> int | None:
        """Say how many layers the model has, if that is known before it is loaded."""
        return known_layers(self.model)

    def segments_per_step(self) -> int:
        """Say how many segments of a row one training step reads."""
        return self.trainer.segments_per_step or self.memory.bptt_segments + 1

    def weights_dtype(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """Say the type in which the weights are loaded; `auto` is as they are stored.

        Training steps are lost in weights of half precision, which only `bf16-true` asks for.
        """
        if self.trainer.precision == "bf16-true" and self.trainer.max_steps != 0:
            return "bfloat16"
        if isinstance(self.model, PretrainedModel) and self.model.dtype != "auto":
            return self.model.dtype
        as_stored = isinstance(self.model, PretrainedModel) and self.trainer.max_steps == 0
        return "auto" if as_stored and self.trainer.precision == "auto" else "float32"

    @model_validator(mode="after")
    def _trains_whole_weights(self) -> Config:
        dtype = self.model.dtype if isinstance(self.model, PretrainedModel) else "auto"
        half = dtype in ("bfloat16", "float16")
        if half and self.trainer.max_steps != 0 and self.trainer.precision != "bf16-true":
            raise ValueError(
                f"model.dtype={dtype} would train weights of half precision, which lose most "
                "updates to rounding: leave model.dtype=auto, which trains float32 weights "
                "whatever the checkpoint holds, or set trainer.precision=bf16-true"
            )
        return self


def _declared(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the settings of a model and of those below it, with their types."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        yield f"{prefix}{name}", Annotated[annotation, *field.metadata, None]
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _declared(part, f"{prefix}{name}.")


def _settings() -> dict[str, tuple[Any, ...]]:
    found: dict[str, list[Any]] = {}
    for name, annotation in _declared(Config):
        found.setdefault(name, []).append(annotation)
    return {name: tuple(annotations) for name, annotations in found.items()}


SETTINGS = _settings()
"""The types of every setting but the knobs of memory's options; a group may declare several."""


def _is_text(annotations: Sequence[Any]) -> bool:
    kinds = {part for annotation in annotations for part in parts(annotation)}
    return str in kinds and not kinds & {int, float, bool}


TEXT_SETTINGS = frozenset(
    {*(k for k, v in SETTINGS.items() if _is_text(v)), "run", "base", "sweeps"}
)
"""Settings that are text whatever they look like: `name=2026`, `data.path=1e3`."""


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Parse overrides of the command line or of a study.

    Raises `ConfigError` for one that cannot be parsed, with how to write it.
    """
    try:
        return parse_lines(lines, TEXT_SETTINGS)
    except OverrideError as error:
        raise ConfigError(str(error)) from None


def repeated(given: Sequence[Override]) -> list[str]:
    """Say of a setting that is given twice which of its values counts."""
    last = {override.key_or_group: override.input_line for override in given}
    return [
        f"{override.input_line} is passed over: {last[override.key_or_group]} comes after it"
        for override in given
        if override.input_line != last[override.key_or_group]
    ]


def text_as_written(lines: Sequence[str]) -> list[str]:
    """Quote the values of text settings that Hydra would read as numbers or truth values."""
    return as_written(lines, TEXT_SETTINGS)


def compose(*overrides: str) -> Config:
    """Compose and validate a configuration as `unimem-train` does with the same arguments.

    Raises `ConfigError` with all problems at once.
    """
    return validate(compose_node("train", overrides))


def compose_node(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a primary configuration of `conf/`, unchecked.

    Raises `ConfigError` for a name or an option that does not exist.
    """
    parsed = parse_overrides(overrides)
    if problems := list(_contradictions(parsed)):
        raise ConfigError(_report(problems))
    if several := [o.input_line or "" for o in parsed if o.is_sweep_override()]:
        raise ConfigError(several_values(several[0]))
    lines = text_as_written(overrides)
    with guarded(), initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        try:
            node = hydra_compose(config_name, [*lines, *search_path()])
            require_readable(node)
        except _OF_COMPOSING as error:
            raise ConfigError(_explain(error, config_name, overrides)) from None
    return drop_unused(node, overrides)


_OF_COMPOSING = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    RecursionError,
)
"""What Hydra and OmegaConf raise for overrides and files that they cannot compose."""


def drop_unused(node: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Take out the knobs of memory that no chosen option takes, unless the overrides set them.

    A method, profile or experiment sets knobs for the options that it chooses itself; with others
    in their place a line says what is dropped. What the overrides set stays, and is refused when
    the settings are checked. The node is changed in place and returned.
    """
    if not isinstance(node.get("memory"), DictConfig):
        return node
    try:
        memory = _plain(node.memory, resolve=True)
        unused = unused_knobs(memory)
    except (OmegaConfBaseException, ImportError, *_OF_COMPOSING):
        return node  # what is wrong is told when the settings are checked
    given = {override.key_or_group for override in parse_overrides(overrides)}
    dropped = {k: v for k, v in unused.items() if v != usual(k) and f"memory.{k}" not in given}
    for key, value in dropped.items():
        say_dropped(f"memory.{key}={value}", str(node.method.name))
    with open_dict(node.memory):
        for key, value in memory.items():
            if key in dropped:
                del node.memory[key]
            elif not isinstance(value, dict):
                node.memory[key] = value  # it may refer to one that is dropped
    return node


@cache  # a sweep composes the same choices for every cell
def say_dropped(setting: str, method: str) -> None:
    """Log once that a setting of the method, the profile or the experiment is dropped."""
    logger.warning(
        "%s is not used by the options chosen, and is dropped; it is set by method=%s, the profile "
        "or the experiment",
        setting,
        method,
    )


ONE_OPTION = ("method", "model", "data", "trainer", "evaluation")
"""Groups of which one option is chosen."""

NODES = ("memory", "attention")
"""Nodes of settings that are no groups of options."""

OF_HYDRA = ("help", "verbose")
"""What of `hydra.` can be set: the rest would run other code, or write outside of `output`."""


def _contradictions(given: Sequence[Override]) -> Iterator[str]:
    """Name what overrides say twice, in different ways, or cannot say at all."""
    # a process that Lightning starts has our own override of Hydra's search path
    own = search_path()
    by_key = {o.key_or_group: o for o in given if o.input_line not in own}
    for key, override in by_key.items():
        value = override.value()
        group = (config_root() / "conf" / key).is_dir()
        of_hydra = re.match(r"hydra\b[./]?(\w*)", key)
        if of_hydra and of_hydra[1] not in OF_HYDRA:
            yield (
                f"{shown(override.input_line or '')}: {key} cannot be set here; runs lie under "
                "output=, and options of your own in the folder of --config-dir"
            )
        elif key in ("", *NODES) and not (isinstance(value, dict) or override.is_delete()):
            yield f"{override.input_line}: write {key or 'name'}.NAME=value for one of its settings"
        elif not group or not key or override.is_sweep_override():
            continue
        elif isinstance(value, list) and key in ONE_OPTION:
            yield f"{override.input_line}: give one {key}, as in {key}={_first(value)}"
        elif value is None:
            yield f"{override.input_line}: leave it out, or name an option, as in {key}=NAME"
        elif not (isinstance(value, str) or _are_words(value)):
            yield f"{override.input_line}: an option is a name, as in {key}=NAME"
        elif bad := [name for name in _words(value) if not _is_option(name)]:
            yield (
                f"{override.input_line}: {shown(bad[0])!r} is not the name of an option; options "
                f"of your own lie in {key}/ of the folder of --config-dir"
            )
        elif key == "logger" and isinstance(value, list) and "none" in value and value[1:]:
            yield (
                f"{override.input_line}: none means no logger; leave it out, or write logger=none"
            )
    layer = by_key.get("injection_layer")
    if layer is None or layer.is_delete() or layer.value() is None:
        return
    for key in ("memory.injection", "memory.injection.layers"):
        other = by_key.get(key)
        if other is not None and not other.is_delete():
            value = other.value()
            chosen = value if isinstance(value, list) else [value]
            if key != "memory.injection" or not {*map(str, chosen)} <= {"layers", "input"}:
                yield (
                    f"{layer.input_line} puts memory into one layer, and {other.input_line} into "
                    "others: leave one of them out"
                )


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else cast(list[str], value)


def _is_option(name: str) -> bool:
    """Say whether a name is a file's in its group: none of another folder is composed."""
    return re.fullmatch(r"\w[\w.+-]*", name) is not None


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, str) for entry in cast(list[Any], value)
    )


def _first(value: Any) -> Any:
    return value[0] if value else "NAME"


def search_path() -> list[str]:
    """Give the override that makes Hydra look into the user's own folder too."""
    own = own_config()
    if own is None:
        return []
    Plugins.instance().register(OwnFolder)
    return [f"hydra.searchpath=[{quoted(f'{OwnFolder.scheme()}://{own}')}]"]


class OwnFolder(FileConfigSource):
    """The user's own folder, whose files Hydra reads once they are within bounds."""

    @staticmethod
    def scheme() -> str:
        """Give the name that stands before `://` in Hydra's search path."""
        return "bounded"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file. Raises `YamlFileError` if it is not YAML, or beyond the bounds."""
        path = Path(self.path) / config_path
        load_yaml(path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml"))
        return super().load_config(config_path)


def _explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """Say in a line or two what Hydra found wrong with the overrides."""
    # The hints read every yaml file, which only a mistake is worth.
    from unimem.hints import unknown_option, unknown_setting

    if refused := refusal(error):
        return str(refused)
    text = str(error)
    unknown = re.match(r"Could not override '([^'@]+)'", text)
    if unknown:
        key = unknown[1]
        others = [o for o in overrides if o.split("=")[0].lstrip("+~") != key]
        known, chosen = _composed_without(config_name, others)
        return unknown_setting(key, known, chosen)
    missing = re.match(r"In '.*': Could not find '(.+)/(.+)'\s+Available options in .*:\n", text)
    if missing:
        options = text[missing.end() :].split("Config search path")[0].split()
        return unknown_option(missing[1], missing[2], options)
    several = re.match(r"Ambiguous value for argument '(.+?)'\n", text)
    if several:
        return several_values(several[1])
    # Hydra's answer to an unknown name in a list of options.
    one_of_several = re.match(r"In '.*': Could not load '(.+)/(.+)'", text)
    if one_of_several:
        group, name = one_of_several.groups()
        return unknown_option(group, name, _options(group))
    if isinstance(error, TypeError):
        return f"{' '.join(overrides)}: an option is a name, as memory.reading=similarity ({text})"
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        given = shown(" ".join(overrides), 1000)
        return f"{given}: cannot be composed ({type(error).__name__}: {text})"
    return text


def several_values(line: str) -> str:
    """Say how to write an override that has several values where one is expected."""
    key, _, value = line.partition("=")
    return (
        f"{line} gives several values: use unimem-sweep, or add -m; for a list write name=[a,b], "
        f"for a value with a comma {shlex.quote(f'{key}={quoted(value)}')}"
    )


def _options(group: str) -> list[str]:
    """List the options of a group, those of the user's own folder too."""
    roots = [config_root() / "conf", own_config()]
    return sorted({file.stem for root in roots if root for file in (root / group).glob("*.yaml")})


def _composed_without(
    config_name: str, overrides: list[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Give the settings that are there, and the options that are chosen, without what is wrong."""
    while True:
        try:
            node = hydra_compose(config_name, [*overrides, *search_path()])
            break
        except _OF_COMPOSING as error:
            unknown = re.match(r"Could not override '([^'@]+)'", str(error))
            left = [o for o in overrides if unknown and o.split("=")[0].lstrip("+~") != unknown[1]]
            if not left or len(left) == len(overrides):
                return [], {}
            overrides = left
    values = _plain(node, resolve=False)
    memory = values.get("memory", {})
    chosen = {f"memory.{d}": [*memory[d]] for d in DIMENSIONS if isinstance(memory.get(d), dict)}
    if isinstance(data := values.get("data"), dict):
        chosen["data"] = [str(cast(dict[str, Any], data).get("kind"))]
    nested = tuple(f"{dimension}." for dimension in chosen)
    return [name for name in _leaves(values) if not name.startswith(nested)], chosen


def _plain(node: DictConfig, *, resolve: bool) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _leaves(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def resolve(node: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into plain values, as they are recorded with a run."""
    missing = [k for k, v in _leaves(_plain(node, resolve=False)).items() if v == "???"]
    if missing:
        raise ConfigError(_report([f"{key} has no default; set {key}=..." for key in missing]))
    try:
        with guarded():
            values = _plain(node, resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(str(refusal(error) or str(error).partition("\n")[0])) from None
    if gone := [key for key in _NODES_OF_RUNS if not isinstance(_at(values, key), dict)]:
        raise ConfigError(_report([f"{key} must stay, with its settings" for key in gone]))
    if "preset" in values:
        raise ConfigError("preset: a method's file sets its budgets under memory:, without preset:")
    _follow(values)
    return canonical(values)


_NODES_OF_RUNS = ("memory", "memory.injection", "data", "model", "method")
"""Mappings that settings are read from before they are checked."""


def _at(values: dict[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = cast(dict[str, Any], found).get(part) if isinstance(found, dict) else None
    return found


SEGMENT_LENGTH = 512
"""Tokens of a segment, where neither the settings nor the corpus say how many."""


def _follow(values: dict[str, Any]) -> None:
    """Fill in what other settings say where nothing is set, and leave out what says nothing."""
    memory, data, model = values["memory"], values["data"], values["model"]
    if memory.get("segment_length", 0) is None:
        memory["segment_length"] = data.get("segment_length", SEGMENT_LENGTH)
    if data.get("tokenizer", "") is None:
        data["tokenizer"] = model.get("tokenizer", "bpe")
    layers = memory.pop("layers", None)
    if (layer := values.pop("injection_layer", None)) is not None:
        try:
            one = TypeAdapter(Place).validate_python(as_declared(layer, (Place,)))
        except ValidationError as error:
            item = {**error.errors()[0], "loc": ("injection_layer",)}
            raise ConfigError(_report([describe(item)])) from None
        at_input = {k: v for k, v in memory["injection"].items() if k == "input"}
        memory["injection"] = {"layers": [one], **at_input}
    elif "layers" in memory["injection"]:
        given = memory["injection"]["layers"]
        memory["injection"]["layers"] = layers if given is None else given
    for key, value in unused_knobs(memory).items():
        if value == usual(key):
            del memory[key]  # it says nothing


def canonical(values: dict[str, Any]) -> dict[str, Any]:
    """Write equal settings alike, so that they are one run: `1e3` and `1000`, `true` and `'true'`.

    What is wrong stays as it is; it is told when the settings are checked.
    """
    memory = values["memory"]
    # A corpus's own segment length is the default of memory.segment_length, which has taken it.
    data = {key: value for key, value in values["data"].items() if key != "segment_length"}
    if str(memory.get("positions")).lower() == "true":  # a scheme that YAML takes for a truth value
        memory["positions"] = "true"
    knobs = knob_types(memory)
    return {
        key: {k: _of_memory(k, entry, knobs) for k, entry in memory.items()}
        if key == "memory"
        else _of_group(key, value)
        for key, value in (values | {"data": data}).items()
    }


def _of_group(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        given = cast(dict[str, Any], value)
        return {key: _of_group(f"{name}.{key}", entry) for key, entry in given.items()}
    return as_declared(value, SETTINGS.get(name, ()))


def _of_memory(name: str, value: Any, knobs: dict[str, Any]) -> Any:
    if name not in DIMENSIONS or not isinstance(value, dict):
        hints = SETTINGS.get(f"memory.{name}", ()) or ((knobs[name],) if name in knobs else ())
        return as_declared(value, hints)
    found: dict[str, Any] = {}
    for option, given in cast(dict[str, Any], value).items():
        if name == "injection" and option == "layers":
            given = in_order(given if isinstance(given, list) else [given])
        elif isinstance(given, dict):
            fields = cast(dict[str, Any], given)
            given = {
                k: as_declared(v, (knobs[k],) if k in knobs else ()) for k, v in fields.items()
            }
        found[option] = given
    return found


def knob_types(memory: dict[str, Any]) -> dict[str, Any]:
    """Give the types of the knobs that the chosen options and the position scheme declare."""
    chosen = [
        (dimension, str(name))
        for dimension in DIMENSIONS
        if isinstance(memory.get(dimension), dict)
        for name in memory[dimension]
    ]
    chosen.append(("positions", str(memory.get("positions", "zero"))))
    return {
        k: v for option in chosen if known_option(*option) for k, v in field_types(*option).items()
    }


def validate(node: DictConfig) -> Config:
    """Check types, ranges and combinations of a composed configuration.

    Raises `ConfigError` with one line for each problem.
    """
    values = resolve(node)
    config = check(values)
    if config.logger.tensorboard and not find_spec("tensorboard"):
        raise ConfigError(
            "logger=tensorboard needs tensorboard: pip install 'unimem[tensorboard]', or leave it "
            "out; logger=csv needs nothing"
        )
    return config


def check(values: dict[str, Any]) -> Config:
    """Check plain values, as `resolve` gives them and a run records them.

    Raises `ConfigError` with one line for each problem.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems = _lines(error) + _plan_problems(values["memory"], None)
        raise ConfigError(_report(list(dict.fromkeys(problems)))) from None
    try:
        layers = config.num_layers()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    problems = _plan_problems(values["memory"], layers)
    if problems:
        raise ConfigError(_report(problems))
    plan = config.memory.plan(layers)
    if refusal := plan.refusal(config.attention.backend):
        raise ConfigError(refusal)
    for remark in plan.remarks:
        logger.warning(remark)
    remembers = bool(plan.layers or plan.soft)
    per_step, reach = config.segments_per_step(), plan.bptt_segments
    if remembers and config.trainer.max_steps != 0 and per_step <= reach:
        logger.warning(
            f"trainer.segments_per_step={per_step}: a step reads {counted(per_step, 'segment')}, "
            f"so gradient reaches {per_step - 1} back at most, not memory.bptt_segments={reach}; "
            f"leave it out, or set it to {reach + 1}"
        )
    length = getattr(config.data, "length", None)
    if length is not None and remembers:
        line = unread_by_length(config, length)
        if line is not None:
            logger.warning(line)
    return config


def unread_by_length(config: Config, length: int) -> str | None:
    """Say in a sentence if no document of `length` tokens ever reads memory."""
    segment, most = config.memory.segment_length, config.evaluation.max_tokens
    return unread([length], segment, f"document of data={config.data.kind}") or (
        unread(
            [min(length, most)], segment, f"held-out document, cut at evaluation.max_tokens={most},"
        )
        if most is not None
        else None
    )


def _plan_problems(memory: dict[str, Any], num_layers: int | None) -> list[str]:
    """Name what is wrong with the options' own budgets and layers."""
    try:
        MemorySettings.model_validate(memory).plan(num_layers)
    except ValidationError:
        return []
    except PlanError as error:
        return list(error.problems)
    return []


def _lines(error: ValidationError) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, PlanError):
            lines += cause.problems
        else:
            lines.append(describe(cast(dict[str, Any], item)))
    return lines


def _report(lines: list[str]) -> str:
    return "\n".join(["invalid configuration:", *(f"  {line}" for line in lines)])
