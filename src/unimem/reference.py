"""Every setting there is: its default and meaning from `conf/*.yaml`, its values from its type."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from unimem.config import SETTINGS
from unimem.memory.depth import NAMES, Place, Places
from unimem.memory.registry import DIMENSIONS, field_types, option_names
from unimem.paths import config_root, group_files, own_config

GROUPS = ("model", "data", "trainer", "evaluation", "logger")
COMMANDS = {
    "sweep": "unimem-sweep",
    "search": "unimem-search",
    "eval": "unimem-eval",
    "bench": "unimem-bench",
}
"""Primary configurations beside train, and whose they are."""

_LINE = re.compile(
    r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#\s].*?))?(?: +# *(?P<comment>.*))?"
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a command.

    Args:
        name: as it is written on the command line.
        defaults: option -> default, as the yaml has it; the option is "" where there is none.
        meanings: option -> the comment of the yaml.
        allowed: values, in words; "" if nothing checks it.
        options: of a group or dimension that declare it, as `memory.reading=similarity`; none for
            a setting that is always there.
        command: the one command that has it; "" for those of a run.
    """

    name: str
    defaults: dict[str, str]
    meanings: dict[str, str]
    allowed: str
    options: tuple[str, ...] = ()
    command: str = ""

    @property
    def default(self) -> str:
        """All defaults in words, once if they are the same."""
        return _by_option(self.defaults)

    @property
    def meaning(self) -> str:
        """What the setting means, for each option if they differ."""
        return _by_option({option: text for option, text in self.meanings.items() if text})

    @property
    def optional(self) -> tuple[str, ...]:
        """The options that declare it, unless its group has no other."""
        groups = {option.partition("=")[0] for option in self.options}
        always = len(groups) == 1 and len(self.options) == len(group_files(*groups))
        return () if always else self.options


def _by_option(values: dict[str, str]) -> str:
    distinct = dict.fromkeys(values.values())
    if len(distinct) <= 1:
        return next(iter(distinct), "")
    options = {value: [o for o, x in values.items() if x == value] for value in distinct}
    return "; ".join(
        value if "" in names else f"{', '.join(names)}: {value}" for value, names in options.items()
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An option of a group: `model=tiny`, with the comment at the head of its file."""

    group: str
    name: str
    meaning: str


def choices(group: str) -> list[Choice]:
    """Return the options of a group, those of the user's own folder too."""
    return [Choice(group=group, name=file.stem, meaning=_head(file)) for file in group_files(group)]


def settings() -> tuple[Setting, ...]:
    """Return all settings, with those of the user's own folder; those of a run first."""
    return _settings(own_config())


@cache
def _settings(own: Path | None) -> tuple[Setting, ...]:
    found = list(_of_primary("train", ""))
    for dimension in DIMENSIONS:
        found += _of_group(f"memory.{dimension}", dimension)
    for group in GROUPS:
        found += _of_group(group, None)
    for primary, command in COMMANDS.items():
        found += _of_primary(primary, command)
    found += _of_launchers()
    return tuple(_merged(found))


def find(name: str) -> list[Setting]:
    """Return the settings of a name, or of its last part alone: `topk` is `memory.topk`."""
    exact = [setting for setting in settings() if setting.name == name]
    if any(not setting.command for setting in exact) or "." in name:
        return exact
    return [s for s in settings() if s.name.rpartition(".")[2] == name]


def explain(setting: Setting) -> str:
    """Put a setting into a few lines."""
    lines = [f"{setting.name}: {setting.meaning}" if setting.meaning else setting.name]
    lines.append(f"  default  {setting.default}")
    if setting.allowed:
        lines.append(f"  values   {setting.allowed}")
    if setting.optional:
        lines.append(f"  with     {', '.join(setting.optional)}")
    if setting.command:
        lines.append(f"  of       {setting.command}")
    return "\n".join(lines)


def _merged(found: Sequence[Setting]) -> Iterator[Setting]:
    """Make one setting of those of one name that several options declare."""
    same: dict[tuple[str, str], list[Setting]] = {}
    for setting in found:
        same.setdefault((setting.name, setting.command), []).append(setting)
    for several in same.values():
        first = several[0]
        yield Setting(
            name=first.name,
            defaults={k: v for setting in several for k, v in setting.defaults.items()},
            meanings={k: v for setting in several for k, v in setting.meanings.items()},
            allowed=next((s.allowed for s in several if s.allowed), ""),
            options=tuple(dict.fromkeys(o for s in several for o in s.options))
            if all(setting.options for setting in several)
            else (),  # it is always there
            command=first.command,
        )


def _of_primary(name: str, command: str) -> Iterator[Setting]:
    for path, value, comment in _lines(config_root() / "conf" / f"{name}.yaml"):
        if path.split(".")[0] not in ("defaults", "hydra"):
            yield Setting(
                name=path,
                defaults={"": value},
                meanings={"": comment},
                allowed="" if command else _allowed(path),
                command=command,
            )


def _of_launchers() -> Iterator[Setting]:
    for file in group_files("launcher"):
        for path, value, comment in _lines(file):
            if "." in path:
                yield Setting(
                    name=path,
                    defaults={"": value},
                    meanings={"": comment},
                    allowed="",
                    options=(f"launcher={file.stem}",),
                    command=COMMANDS["sweep"],
                )


def _allowed(name: str) -> str:
    """Return which values a setting of `conf/train.yaml` takes."""
    if name == "memory.positions":
        return ", ".join(option_names("positions"))
    if name == "memory.limit":
        return in_words((field_types("positions", "capped")["limit"],))
    return in_words(SETTINGS.get(name, ()))


def _of_group(group: str, dimension: str | None) -> Iterator[Setting]:
    for file in group_files(group):
        option = f"{group}={file.stem}"
        types: dict[str, Any] = {}
        if dimension is not None and file.stem in option_names(dimension):
            types = field_types(dimension, file.stem)
            if file.stem == "layers":
                yield from _injected(option, types)
        for path, value, comment in _inherited(file):
            if dimension == "injection" or path.split(".")[0] == dimension:
                continue
            name = f"{'memory' if dimension is not None else group}.{path}"
            hints = (types[path],) if path in types else SETTINGS.get(name, ())
            by_layer = dimension in ("management", "reading") and path in types
            words = in_words(hints)
            if by_layer and words.startswith("whole number"):
                words += "; or a list, one for each layer"
            yield Setting(
                name=name,
                defaults={file.stem: value},
                meanings={file.stem: comment},
                allowed=words,
                options=(option,),
            )


def _injected(option: str, types: dict[str, Any]) -> Iterator[Setting]:
    """Yield the settings that name the layers of memory.injection=layers."""
    (annotation,) = types.values()
    yield Setting(
        name="memory.injection.layers",
        defaults={"layers": "[0.5]"},
        meanings={"layers": "layers with memory"},
        allowed=in_words((annotation,)),
        options=(option,),
    )
    one = in_words((Place | None,))
    yield Setting(name="injection_layer", defaults={}, meanings={}, allowed=one, options=())


def _head(file: Path) -> str:
    """Return the comment at the head of a file as one sentence or more."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _inherited(file: Path) -> list[tuple[str, str, str]]:
    """Return the lines of a file, after those of the file that its defaults name."""
    text = file.read_text(encoding="utf-8")
    found: dict[str, tuple[str, str, str]] = {}
    for name in re.findall(r"^  - (\w+)$", text, re.M):
        base = file.with_name(f"{name}.yaml")
        if name != "_self_" and base.is_file():
            found |= {line[0]: line for line in _inherited(base)}
    return [*(found | {line[0]: line for line in _lines(file)}).values()]


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Return name, default and comment of every value in a yaml file of ours."""
    above: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            continue
        indent = len(found["indent"])
        while above and above[-1][0] >= indent:
            above.pop()
        if found["value"] is None:
            above.append((indent, found["key"]))
            continue
        path = ".".join([*(key for _, key in above), found["key"]])
        yield path, _default(found["value"]), found["comment"] or ""


def _default(value: str) -> str:
    return "model.name" if value == "${.name}" else value.strip('"')


def in_words(annotations: Sequence[Any]) -> str:
    """Return which values a setting takes."""
    words = [word for annotation in annotations for word in _values(annotation)]
    if "null" in words:
        words = [word for word in words if word != "null"] + ["null"]
    return ", ".join(dict.fromkeys(words))


def _values(annotation: Any, bounds: Sequence[Any] = ()) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (Place, Places):
        names = f"; or {', '.join(NAMES)}, or a list of these" if annotation == Places else ""
        yield f"an index, from the end if negative, or a fraction of the depth (0.0 to 1.0){names}"
    elif origin is Annotated:
        inner, *notes = arguments
        flat = [note for x in notes for note in getattr(x, "metadata", None) or [x]]
        yield from _values(inner, [*bounds, *flat])
    elif origin is Literal:
        yield from (str(value) for value in arguments)
    elif origin is list:
        yield f"list of {', '.join(_values(arguments[0]))}"
    elif arguments:
        for part in arguments:
            yield from _values(part, bounds)
    elif annotation is type(None):
        yield "null"
    elif annotation is bool:
        yield "true, false"
    elif annotation in (int, float):
        yield f"{'whole number' if annotation is int else 'number'}{_range(bounds)}"
    elif annotation is str:
        yield "text"


def _range(bounds: Sequence[Any]) -> str:
    signs = (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))
    limits = [
        f"{word} {getattr(bound, key)}"
        for key, word in signs
        for bound in bounds
        if getattr(bound, key, None) is not None
    ]
    return f" {' '.join(limits)}" if limits else ""
