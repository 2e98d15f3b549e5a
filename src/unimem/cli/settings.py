"""python -m unimem.cli.settings: docs/settings.md, made from the yaml files and the types."""

from collections.abc import Sequence

from unimem.memory.registry import DIMENSIONS
from unimem.reference import COMMANDS, GROUPS, Choice, Setting, choices, settings

INTRODUCTION = """\
# Settings

Made by `python -m unimem.cli.settings`; do not edit.

Every setting is `name=value` on the command line of `unimem-train`, `unimem-sweep` and
`unimem-search`; a group's option is chosen by `group=option`. `unimem-train --explain NAME` prints
what this page has on one setting, and `unimem-train --cfg job --resolve` what a command line comes
to. Settings of an option are there when the option is chosen. What comes first: the command line,
then `experiment=` and `profile=`, then `method=`, then `data=`, then the default.

Options of your own lie in a folder laid out as `conf/`, named by `--config-dir FOLDER`
([adding a method](adding-a-method.md)). Values with `=`, commas, brackets, spaces or letters beyond
ASCII need quotes of their own: `'data.path="texts/lr=0.1"'`.
"""

QUESTIONS = {
    "management": "what survives the budget?",
    "writing": "what does a finished segment leave behind?",
    "reading": "which slots may each query see?",
    "injection": "which layers have memory?",
}


def page() -> str:
    """Return the whole page as Markdown."""
    found = [s for s in settings() if not s.command]
    sections = [INTRODUCTION, "## A run\n", _table([s for s in found if _place(s) == "run"])]
    sections += ["## Memory\n", _table([s for s in found if _place(s) == "memory"])]
    for dimension in DIMENSIONS:
        group = f"memory.{dimension}"
        sections += [f"### {group}: {QUESTIONS[dimension]}\n", _options(choices(group))]
    for group in GROUPS:
        sections += [f"## {group}\n", _options(choices(group))]
        sections.append(_table([s for s in found if _place(s) == group]))
    for group, what in (("method", "Presets of memory"), ("profile", "Scales"),
                        ("experiment", "Whole experiments"),
                        ("launcher", "Where a sweep's cells run")):  # fmt: skip
        sections += [f"## {what}: {group}\n", _options(choices(group))]
    for command in COMMANDS.values():
        own = [setting for setting in settings() if setting.command == command]
        sections += [f"## {command} itself\n", _table(own)]
    return "\n".join(sections)


def _place(setting: Setting) -> str:
    first = setting.name.partition(".")[0]
    return first if first in ("memory", *GROUPS) else "run"


def _options(found: Sequence[Choice]) -> str:
    rows = [("option", "what it is"), ("---", "---")]
    rows += [(f"`{choice.group}={choice.name}`", choice.meaning) for choice in found]
    return _rows(rows)


def _table(found: Sequence[Setting]) -> str:
    rows = [("setting", "default", "values", "meaning", "with"), ("---",) * 5]
    rows += [
        (
            f"`{setting.name}`",
            setting.default,
            setting.allowed,
            setting.meaning,
            ", ".join(f"`{option}`" for option in setting.optional),
        )
        for setting in found
    ]
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


if __name__ == "__main__":
    print(page(), end="")
