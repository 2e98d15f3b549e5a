"""The folder of a run: one process creates it, one process at a time continues it."""

import fcntl
import itertools
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from unimem.config import Config, ConfigError
from unimem.runs.continued import require_same
from unimem.runs.files import write_bytes_atomic
from unimem.runs.layout import CONFIG, METRICS, RESULT
from unimem.runs.records import quarantine_result
from unimem.settings import ModelSettings, ScratchModel
from unimem.yaml_file import YamlFileError, load_yaml

logger = logging.getLogger(__name__)

MODEL = "model"
_LOCK = ".lock"

_FOLDER_VARIABLE = "UNIMEM_RUN_FOLDER"
"""Environment variable by which the first process passes the folder to the others."""


@dataclass
class RunFolder:
    """A folder that only this process writes to.

    `begun` is set when training begins: from then on the folder is kept after an error.
    """

    path: Path
    begun: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / RESULT).is_file()


@contextmanager
def open_run(config: Config, rank: int) -> Iterator[RunFolder]:
    """Make the run's folder, or with `resume` open it, and hold its lock.

    `resume=true` opens an existing folder; `resume=auto` creates it if it does not exist. Processes
    of rank 1 and above write nothing and use the folder of rank 0. A new folder is removed again
    if an error is raised before training.

    Raises `ConfigError` if the name is taken or unknown, if the settings differ from the recorded
    ones, or if another process writes to the folder.
    """
    study = Path(config.output) / config.study
    if rank > 0:
        yield RunFolder(_joined(config, study), begun=True)
        return
    with _opened(config, study) as path:
        if config.resume and (problem := quarantine_result(path)):
            logger.warning(problem)
        _remove_unfinished(path)
        # A process that was killed before it recorded its settings has begun nothing.
        begun = bool(config.resume) and (path / CONFIG).is_file()
        if config.resume and not begun:
            _require_empty(path)
        run = RunFolder(path, begun=begun)
        record = config.record() | {"name": path.name, "resume": False}
        if begun:
            require_same(
                recorded_config(path),
                record,
                path,
                resume=_asked(config),
                finished=run.finished,
            )
        else:
            text = OmegaConf.to_yaml(OmegaConf.create(record))
            write_bytes_atomic(path / CONFIG, text.encode())
        os.environ[_FOLDER_VARIABLE] = str(path.resolve())
        try:
            yield run
        except BaseException:
            if not run.begun and not path.is_symlink():
                shutil.rmtree(path)
            raise
        finally:
            os.environ.pop(_FOLDER_VARIABLE, None)


def recorded_config(folder: Path) -> dict[str, Any]:
    """Read the settings that a run was started with.

    Raises `ConfigError` if `folder` is not a run's, or if they cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run's folder: it holds no {CONFIG}")
    try:
        values = load_yaml(path)
    except YamlFileError as error:
        raise ConfigError(
            f"{error}; bring that file back, or start a run of another name"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not the record of a run: it holds no settings")
    return cast(dict[str, Any], values)


def weights_folder(folder: Path, config: dict[str, Any]) -> Path:
    """Return the folder of the weights with which a finished run was evaluated.

    A run that trained nothing has no copy: its weights are those of the run it started from.
    """
    model, trained = config["model"], config["trainer"]["max_steps"] != 0
    if trained or model["kind"] != "pretrained":
        return folder / MODEL
    start = Path(model["name"])
    return start if start.name == MODEL and (start.parent / RESULT).is_file() else folder / MODEL


def readable_name(config: Config, started_from: ModelSettings | None = None) -> str:
    """Return a name made of the settings: method, layer if there is one, model, data, seed.

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
    named = config.memory.injection.get("layers", ())
    one = isinstance(named, list) and len(named) == 1 and isinstance(named[0], int)
    layer = [f"l{(config.memory.layers(depth) if depth else named)[0]}"] if one else []
    words = [config.method.name, *layer, shape, config.data.kind, f"s{config.seed}"]
    return as_file_name("-".join(words))


def as_file_name(text: str) -> str:
    """Return text as part of a path: foreign names of methods and models may hold anything."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).lstrip(".-")[:160]


def require_place(config: Config) -> None:
    """Make sure, without torch, that a run can be recorded where the settings say.

    Raises `ConfigError` as `open_run` does for a folder that cannot be written, a name that is
    taken, or a run to continue that is not there. To be called in a run's first process.
    """
    study = Path(config.output) / config.study
    if config.resume is True:
        _existing(config, study)
        return
    make_folder(study, config.output)
    if config.resume == "auto":
        _require_folder(config, study / _name(config))
    elif config.name is not None and (study / config.name).exists():
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
    if (path / RESULT).is_file():
        how = "choose another name"
    else:
        how = "continue that run with resume=true, or choose another name"
    state = "is a finished run" if (path / RESULT).is_file() else "exists"
    return ConfigError(f"name={config.name} is taken: {path} {state}; {how}")


def _asked(config: Config) -> str:
    return "resume=auto" if config.resume == "auto" else "resume=true"


def _name(config: Config) -> str:
    """Return the name of the run that `resume=auto` starts or continues."""
    return config.name or readable_name(config)


@contextmanager
def _opened(config: Config, study: Path) -> Iterator[Path]:
    """Make the folder, or find the one to continue, and hold its lock."""
    if config.resume != "auto":
        path = _existing(config, study) if config.resume else _made(config, study)
        with _locked(path):
            yield path
        return
    make_folder(study, config.output)
    path = study / _name(config)
    with ExitStack() as stack:
        for _ in range(_TRIES):
            _require_folder(config, path)
            with suppress(FileExistsError):
                path.mkdir()
            try:
                stack.enter_context(_locked(path))
            except FileNotFoundError:  # the process that made it came to nothing, and removed it
                continue
            break
        else:
            raise ConfigError(f"{path} is made and removed by another process; wait for it")
        yield path


_TRIES = 10


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
    if not path.exists():
        raise ConfigError(
            f"resume=true name={config.name}: {path} does not exist; check the name, or start the "
            "run with resume=auto"
        )
    _require_folder(config, path)
    return path


def _require_folder(config: Config, path: Path) -> None:
    """Refuse, before anything is written there, to continue what is not the folder of a run."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise ConfigError(
            f"{_asked(config)}: {path} is not a run's folder; choose another name, name=..."
        )
    if not (path / CONFIG).is_file() and not (path / _LOCK).is_file():
        _require_empty(path)


def _require_empty(path: Path) -> None:
    if any(child.name != _LOCK for child in path.iterdir()):
        raise ConfigError(
            f"{path} is not a run's folder: it holds no {CONFIG}; choose another name, name=..."
        )


def _remove_unfinished(path: Path) -> None:
    """Remove what killed processes were writing."""
    for name in (CONFIG, METRICS, RESULT):
        for left in path.glob(f".{name}.tmp-*"):
            left.unlink()


def _joined(config: Config, study: Path) -> Path:
    if _FOLDER_VARIABLE in os.environ:
        return Path(os.environ[_FOLDER_VARIABLE])
    if config.resume == "auto":
        return study / _name(config)
    if config.name is None:
        raise ConfigError("processes that are started one by one need name=... to find each other")
    return study / config.name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends.

    Raises `ConfigError` if another process has it, FileNotFoundError if the folder is gone.
    """
    with (path / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{path} is being written by another process ({file.read().strip()}); "
                "wait for it, or choose another name"
            ) from None
        # Between the two lines above, the process that had the lock may have removed the folder.
        if not os.path.samestat(os.stat(path / _LOCK), os.fstat(file.fileno())):
            raise FileNotFoundError(path / _LOCK)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
