"""The signature of a run: a digest of the settings, code and data that decide its numbers."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from unimem.config import Config, ConfigError
from unimem.data.build import build_corpus
from unimem.data.documents import Corpus
from unimem.data.settings import DataSettings
from unimem.integrity import file_sha256
from unimem.memory.depth import layers_at
from unimem.memory.registry import DIMENSIONS, option_class
from unimem.paths import own_config
from unimem.runs.continued import WITHOUT_EFFECT
from unimem.runs.folder import MODEL

CELLS = "cells"
"""The folder under `output` that holds the runs of all studies."""

_CODE = ("memory", "attention", "model", "data", "training", "evaluation")


def signature(config: Config, data_digest: str) -> str:
    """Return the sha256 of everything that decides a run's numbers.

    Args:
        config: the run's settings.
        data_digest: `Corpus.digest` of the run's corpus.
    """
    settings = _without(_by_index(config), WITHOUT_EFFECT)
    settings["memory"] = _one_for_all(settings["memory"])
    model = settings["model"]
    if model["kind"] == "pretrained":
        settings["model"] = model | {"name": _weights(model["name"])}
    # The digest of the tokens covers the tokenizer, which may lie in several places.
    for node in ("data", "model"):
        settings[node].pop("tokenizer", None)
    parts = [settings, code_digest(), data_digest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def require_cell(config: Config, name: str, data_digest: str) -> None:
    """Refuse a run in the folder of cells whose name is not its own signature.

    Raises `ConfigError`.
    """
    if config.study == CELLS and not name.endswith(f"-{signature(config, data_digest)[:12]}"):
        raise not_a_cell(name)


def not_a_cell(name: str | None) -> ConfigError:
    """Return why a run cannot be recorded in the folder of cells."""
    named = f"name={name} is not of these settings" if name else "this run has no such name"
    return ConfigError(
        f"study={CELLS}: sweeps keep their cells there, each under a name that ends in the "
        f"signature of its settings, code and data; {named}: choose another study, study=..."
    )


def _by_index(config: Config) -> dict[str, Any]:
    """Return the record with layers named by index, if the model's depth is known."""
    record, depth = config.record(), config.num_layers()
    injection = record["memory"]["injection"]
    if depth is not None and "layers" in injection:
        injection["layers"] = list(layers_at(injection["layers"], depth))
    return record


def _one_for_all(memory: dict[str, Any]) -> dict[str, Any]:
    """Return memory settings with equal per-layer budgets written as one number."""
    lists = {
        name
        for dimension in DIMENSIONS
        for option in memory[dimension]
        for name in option_class(dimension, option).list_fields
    }

    def once(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: once(k, v) for k, v in value.items()}
        if key in ("layers", "indices") or not isinstance(value, list) or not value:
            return value
        alike = all(entry == value[0] for entry in value)
        return value[0] if alike and (key not in lists or isinstance(value[0], list)) else value

    return once("memory", memory)


@cache
def code_digest() -> str:
    """Return the sha256 of the source files that make numbers, as of the first call.

    Comments, docstrings and formatting do not count.
    """
    return _code_digest()


def code_changed() -> bool:
    """Whether the source files have changed since: a new process would make other numbers."""
    return _code_digest() != code_digest()


def _code_digest() -> str:
    root = Path(__file__).parents[1]
    files = [path for name in _CODE for path in (root / name).rglob("*.py")]
    digest = _sources_digest(root, files)
    if own := own_config():
        digest += _sources_digest(own, [*own.rglob("*.py")])
    return digest


def _sources_digest(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        digest.update(f"{name}\0{_code_of(path.read_bytes())}\0".encode())
    return digest.hexdigest()


@cache  # of a file's content, which is asked for before each cell of a sweep
def _code_of(source: bytes) -> str:
    """Return the code of a Python file, without comments, docstrings and formatting."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # reported when it is imported
        return source.decode("utf-8", "backslashreplace")
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [x for x in node.body if not _is_text(x)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def data_digest(settings: DataSettings) -> str:
    """Return the digest of the corpus. Raises ValueError or OSError if there is no such corpus."""
    return corpus_of(settings).digest


def corpus_of(settings: DataSettings) -> Corpus:
    """Return the corpus, built once in a process.

    Raises ValueError or OSError if there is no such corpus.
    """
    key = settings.model_dump_json()
    if key not in _corpora:
        try:
            _corpora[key] = build_corpus(settings)
        except (ValueError, OSError) as error:
            _corpora[key] = error  # a hub that does not answer is waited for once
    found = _corpora[key]
    if isinstance(found, Exception):
        raise found
    return found


_corpora: dict[str, Corpus | ValueError | OSError] = {}


@cache
def _weights(name: str) -> str:
    """Return an identity of the weights of a model folder that does not depend on its path."""
    folder = Path(name)
    cell = folder.parent
    if folder.name == MODEL and cell.parent.name == CELLS:
        return f"{CELLS}/{cell.name}"  # it ends in the signature of the training run
    if folder.is_dir():
        return _files_digest(folder, [path for path in folder.rglob("*") if path.is_file()])
    return name


def _files_digest(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _without(values: dict[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in names
    }
