"""Checks before a run starts that need no torch, so that a mistake is answered in a second."""

import os
import re
import sys
from pathlib import Path

from unimem.config import Config, ConfigError
from unimem.runs.folder import require_place
from unimem.runs.signature import CELLS, not_a_cell
from unimem.settings import PretrainedModel
from unimem.training.launched import rank_of, require_tasks, task_of

GPU_FILES = ("nvidiactl", "nvhost-ctrl", "nvmap", "dxg", "kfd")
"""Device files under /dev: each GPU driver that torch supports makes one of them on Linux."""


def require_startable(config: Config) -> None:
    """Check the run's folder, model, documents, GPU and number of processes.

    Raises `ConfigError` for a run that cannot start here.
    """
    settings = config.trainer
    if settings.devices != "auto":
        require_tasks(task_of(os.environ), settings.devices, settings.num_nodes)
    if rank_of(os.environ) > 0:
        return  # the first process checks
    if config.study == CELLS and not re.search(r"-[0-9a-f]{12}$", config.name or ""):
        raise not_a_cell(config.name)
    require_place(config)
    _require_model(config)
    _require_documents(config)
    if config.trainer.accelerator == "gpu" and not _may_have_gpu():
        raise ConfigError("trainer.accelerator=gpu but this machine has no GPU; use auto or cpu")


def _require_model(config: Config) -> None:
    model = config.model
    if not isinstance(model, PretrainedModel) or Path(model.name).expanduser().is_dir():
        return
    # A hub id is NAME or OWNER/NAME.
    if model.name.count("/") > 1 or model.name.startswith(("/", ".", "~")):
        raise ConfigError(
            f"model.name={model.name} does not exist (looked for from {Path.cwd()}); name a folder "
            "that holds a config.json, as outputs/runs/NAME/model, or a hub id, OWNER/NAME"
        )


def _require_documents(config: Config) -> None:
    given = getattr(config.data, "path", None)
    for path in [given] if isinstance(given, str) else given or []:
        if not Path(path).expanduser().exists():
            raise ConfigError(
                f"data.path={path} does not exist (looked for from {Path.cwd()}); "
                "name a file, a folder, or a list of them"
            )


def _may_have_gpu() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return any(Path("/dev", name).exists() for name in GPU_FILES)
