"""The folder of a run: made by one process alone, continued by one process at a time."""

import fcntl
import itertools
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from unimem.config import Config, ConfigError
from unimem.results.records import CONFIG, RESULT, set_damaged_aside, write_bytes_atomic
from unimem.settings import ModelSettings, ScratchModel

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
MODEL = "model"
MAY_DIFFER = (
    "resume",
    "output",
    "study",
    "name",
    "data.cache",
    "logger.",
    "memory.device",
    "method.title",
    "method.paper",
    "method.exact",
    "method.note",
    "model.parameters",
    "evaluation.",
    "trainer.checkpoint_every",
    "trainer.keep_best",
    "trainer.keep_checkpoints",
    "trainer.log_every",
    "trainer.threads",
)
"""Settings, or beginnings of their names, that a continued run may change; among them are all that
cannot change a number (`signature.WITHOUT_EFFECT`)."""

_FOLDER_VARIABLE = "UNIMEM_RUN_FOLDER"
"""How the first process of a run tells those that it starts where the folder is."""


@dataclass
class RunFolder:
    """A folder that this process alone writes to, while it runs.

    `begun` is set when training begins: from then on the folder stays, whatever happens.
    """

    path: Path
    begun: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / RESULT).is_file()


@contextmanager
def open_run(config: Config, resolved: dict[str, Any], rank: int) -> Iterator[RunFolder]:
    """Make the run's folder, or with `resume=true` open it, and hold its lock.

    Processes of rank 1 and above write nothing and join the folder of rank 0. A new folder is
    removed again if an error comes before training.

    Raises `ConfigError` if the name is taken or unknown, if the settings differ from those that
    the run began with, or if another process is at it.
    """
    study = Path(config.output) / config.study
    if rank > 0:
        yield RunFolder(_joined(config, study), begun=True)
        return
    path = _existing(config, study) if config.resume else _made(config, study)
    with _locked(path):
        if config.resume and (told := set_damaged_aside(path)):
            logger.warning(told)
        # a process that was killed before it recorded its settings has begun nothing
        begun = config.resume and (path / CONFIG).is_file()
        if config.resume and not begun and any(child.name != ".lock" for child in path.iterdir()):
            raise ConfigError(f"{path} is not a run's folder: it holds no {CONFIG}")
        run = RunFolder(path, begun=begun)
        record = resolved | {"name": path.name, "resume": False}
        if begun:
            _require_same(recorded_config(path), record, path)
        else:
            text = OmegaConf.to_yaml(OmegaConf.create(record))
            write_bytes_atomic(path / CONFIG, text.encode())
        os.environ[_FOLDER_VARIABLE] = str(path.resolve())
        try:
            yield run
        except BaseException:
            if not run.begun:
                shutil.rmtree(path)
            raise
        finally:
            os.environ.pop(_FOLDER_VARIABLE, None)


def recorded_config(folder: Path) -> dict[str, Any]:
    """Read the settings that a run was started with.

    Raises `ConfigError` if `folder` is not a run's.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run's folder: it holds no {CONFIG}")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


def weights_folder(folder: Path, config: dict[str, Any]) -> Path:
    """Say where the weights lie that a finished run read held-out documents with.

    They are its own, or, if it trained nothing, those of the run that it started from: a sweep over
    budgets does not copy the model for every cell.
    """
    model, trained = config["model"], config["trainer"]["max_steps"] != 0
    if trained or model["kind"] != "pretrained":
        return folder / MODEL
    start = Path(model["name"])
    return start if start.name == MODEL and (start.parent / RESULT).is_file() else folder / MODEL


def readable_name(config: Config, started_from: ModelSettings | None = None) -> str:
    """Make a name of the settings: method, layer if there is one, model, data, seed.

    A model is named by its shape, a pretrained one by its own name. `started_from` is the model of
    the run whose weights this one starts from.
    """
    model = started_from or config.model
    if isinstance(model, ScratchModel):
        shape = f"{model.num_layers}x{model.hidden_size}"
    else:
        path = Path(model.name)
        shape = path.parent.name if path.name == MODEL else path.name
    depth = config.num_layers()
    layer = [] if config.injection_layer is None else [f"l{config.injection_layer}"]
    if layer and depth is not None:
        layer = [f"l{index}" for index in config.memory.layers(depth)]
    return "-".join([config.method.name, *layer, shape, config.data.kind, f"s{config.seed}"])


def require_place(config: Config) -> None:
    """Make sure, without torch, that a run can be recorded where the settings say.

    Raises `ConfigError` as `open_run` does for a folder that cannot be written, a name that is
    taken, or a run to continue that is not there. To be called in a run's first process.
    """
    study = Path(config.output) / config.study
    if config.resume:
        _existing(config, study)
        return
    make_folder(study, config.output)
    if config.name is not None and (study / config.name).exists():
        raise _taken(config, study / config.name)


def make_folder(path: Path, output: str) -> None:
    """Make a folder in the output. Raises `ConfigError` if it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
        reason = "it cannot be written"
    except OSError as error:
        writable, reason = False, f"{error.strerror or error}: {error.filename or path}"
    if not writable:
        raise ConfigError(
            f"output={output}: the folder {path} cannot be made ({reason}); name a folder "
            "that can be written, output=FOLDER"
        )


def _taken(config: Config, path: Path) -> ConfigError:
    return ConfigError(
        f"name={config.name} is taken: {path} exists; "
        "continue that run with resume=true, or choose another name"
    )


def _made(config: Config, study: Path) -> Path:
    make_folder(study, config.output)
    if config.name is not None:
        path = study / config.name
        try:
            path.mkdir()
        except FileExistsError:
            raise _taken(config, path) from None
        return path
    base = readable_name(config)
    for number in itertools.count(1):
        path = study / (base if number == 1 else f"{base}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _existing(config: Config, study: Path) -> Path:
    if config.name is None:
        raise ConfigError("resume=true needs name=..., the run's folder under output/study")
    path = study / config.name
    if not path.is_dir():
        raise ConfigError(f"resume=true name={config.name}: {path} does not exist; check the name")
    return path


def _joined(config: Config, study: Path) -> Path:
    if _FOLDER_VARIABLE in os.environ:
        return Path(os.environ[_FOLDER_VARIABLE])
    if config.name is None:
        raise ConfigError("processes that are started one by one need name=... to find each other")
    return study / config.name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends."""
    with (path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{path} is being written by another process ({file.read().strip()}); "
                "wait for it, or choose another name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _require_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    old, new = _flat(before), _flat(now)
    changed = {key for key in old | new if old.get(key, _ABSENT) != new.get(key, _ABSENT)}
    allowed = {key for key in changed if key.startswith(MAY_DIFFER)}
    for key in sorted(allowed):
        logger.info("%s: %s, was %s", key, new.get(key, _ABSENT), old.get(key, _ABSENT))
    if refused := sorted(changed - allowed):
        lines = [f"  {k}: {new.get(k, _ABSENT)}, was {old.get(k, _ABSENT)}" for k in refused]
        raise ConfigError(
            "\n".join(
                [
                    f"resume=true: these settings differ from those that {path} began with; "
                    "set them as they were, or start a run of another name",
                    *lines,
                    f"only these may differ: {', '.join(MAY_DIFFER)}",
                ]
            )
        )


_ABSENT = "(absent)"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
