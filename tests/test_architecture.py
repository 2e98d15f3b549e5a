"""The layout that keeps the code readable: who may import whom."""

import ast
from pathlib import Path

import pytest

import unimem

ROOT = Path(unimem.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A module may import from its own package and from those named beside it, never upwards.
ALLOWED = {
    "words": set(),
    "memory": {"memory", "paths", "words"},
    "data": {"data", "words", "hub", "integrity"},
    "hub": set(),
    "paths": set(),
    "integrity": set(),
    "settings": set(),
    "overrides": {"words"},
    "yaml_file": set(),
    "interpolation": set(),
    "hints": {"reference"},
    "reference": {"config", "memory", "paths", "settings"},
    "config": {
        "config", "memory", "data", "paths", "settings", "overrides", "words", "hints", "yaml_file",
        "interpolation",
    },
    "attention": {"attention", "memory"},
    "model": {"model", "attention", "memory", "settings", "hub", "integrity"},
    "evaluation": {"evaluation", "model", "memory", "data", "settings", "words", "integrity"},
    "runs": {
        "runs", "memory", "data", "settings", "config", "paths", "words", "yaml_file", "integrity",
    },
    "results": {"results", "runs", "evaluation", "words", "integrity"},
    "training": {
        "training", "runs", "evaluation", "model", "attention", "memory", "data", "settings",
        "config", "paths", "words", "integrity",
    },
    "studies": {
        "studies", "training", "runs", "evaluation", "results", "memory", "data", "settings",
        "config", "paths", "overrides", "words", "hints", "yaml_file", "integrity", "interpolation",
    },
    "bench": {
        "bench", "training", "runs", "evaluation", "results", "model", "attention", "memory",
        "data", "settings", "config", "paths",
    },
}  # fmt: skip


def imports(file: Path) -> set[str]:
    """The packages of ours that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unimem"):
            found.add(node.module.removeprefix("unimem").strip("."))
        if isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("unimem").strip(".") for a in node.names if "unimem" in a.name
            }
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_downwards_by_full_path(file):
    place = file.relative_to(ROOT).with_suffix("").parts[0]
    for module in imports(file):
        if place in ("cli", "__init__"):
            continue
        assert module, f"{file} imports through the package root"
        assert place in ALLOWED, f"say in ALLOWED what {place} may import"
        assert module.split(".")[0] in ALLOWED[place], f"{file} imports unimem.{module}"


ABOVE_OPTIONS = {"plan", "registry", "settings", "unread"}
"""Modules of memory/ that build on the options, so that no option may import them."""


def test_dimensions_do_not_know_each_other():
    shared = {f"memory.{file.stem}" for file in (ROOT / "memory").glob("*.py")}
    shared -= {f"memory.{name}" for name in (*ABOVE_OPTIONS, "__init__")}
    for file in FILES:
        parts = file.relative_to(ROOT).parts
        if parts[0] == "memory" and len(parts) == 3:
            for module in imports(file):
                own = {"memory.positions.base", "words", f"memory.{parts[1]}.base"}
                assert module in shared | own, f"{file} imports unimem.{module}"
    for module in shared:
        file = ROOT / f"{module.replace('.', '/')}.py"
        above = {f"memory.{name}" for name in ABOVE_OPTIONS} & imports(file)
        assert not above, f"options may import {file}, and it imports {above}: add to ABOVE_OPTIONS"


def test_nothing_dangerous_is_called():
    """No pickle, no eval, no unsafe load: other people's files are data."""
    for file in FILES:
        text = file.read_text()
        for word in (
            "weights_only=False",
            "allow_pickle=True",
            "yaml.load(",
            "load_from_checkpoint",
        ):
            assert word not in text, f"{word} in {file}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), file
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "dill"}, file
