"""Checkpoints that are either whole or not there, and that tell when they were damaged.

`step-00000050.ckpt` lies beside `step-00000050.ckpt.sha256`. The checksum is written first, so a
checkpoint without one was never finished.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO

from unimem.integrity import file_sha256
from unimem.runs.files import fsync_folder, write_bytes_atomic
from unimem.runs.write_errors import write_error_reason
from unimem.settings import TrainerSettings
from unimem.training.out_of_memory import is_oom
from unimem.training.signals import StopSignals

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-\d+\.ckpt")
_BEST = re.compile(r"best-\d+\.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target, never through TMPDIR; loads tensors and plain values only.

    A kill or a full disk at any moment leaves the earlier checkpoints as they were.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint and its checksum. Raises OSError if there is no room for them."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            write_bytes_atomic(_checksum(path), f"{file_sha256(temporary)}\n".encode())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as RuntimeError, in words about its own archive
            why = write_error_reason(path.parent, error)
            raise OSError(
                f"{path} cannot be written: {why}; earlier checkpoints are intact: make room, and "
                "if the run ends continue it with resume=true"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load a checkpoint whose checksum is right.

        Raises ValueError for one that is damaged, or that no run of ours wrote.
        """
        if problem := find_corruption(Path(path)):
            raise ValueError(f"{path} is damaged: {problem}")
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; one that is half removed counts as damaged."""
        _checksum(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """Saves every `checkpoint_every` optimizer steps, after the last one, and when told to stop.

    What cannot be saved on the way, as on a full disk, is a warning: training goes on, and the next
    checkpoint is tried. Only the last one must not fail.
    """

    def __init__(self, folder: Path, settings: TrainerSettings, stop: StopSignals):
        self._folder, self._settings, self._stop = folder, settings, stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals, which Lightning has taken before."""
        self._stop.install()
        self._stop.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is no next step to wait for."""
        self._stop.training = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step that ended: save, and make training end, if it is time to."""
        if (batch_idx + 1) % self._settings.accumulate:
            return
        step = trainer.global_step
        stop = trainer.strategy.reduce_boolean_decision(self._stop.received is not None, all=False)
        last = step == self._settings.steps or trainer.should_stop
        if stop or last or step % self._settings.checkpoint_every == 0:
            saved = self._save(trainer, step, must=stop or last)
            if saved and trainer.is_global_zero:
                for old in checkpoints(self._folder)[: -self._settings.keep_checkpoints]:
                    AtomicCheckpointIO().remove_checkpoint(old)
                for old in _superseded(self._folder):
                    AtomicCheckpointIO().remove_checkpoint(old)
        trainer.should_stop |= stop

    def _save(self, trainer: Trainer, step: int, *, must: bool) -> bool:
        """Save a checkpoint, and say whether it is there.

        Raises OSError if it must be there, or if the run's folder is gone.
        """
        problem = try_to_save(trainer, self._folder / f"step-{step:08d}.ckpt")
        if problem is not None and not self._folder.parent.is_dir():
            raise OSError(f"{self._folder.parent} is gone, and nothing can be saved") from problem
        if problem is not None and must:
            raise problem
        if problem is not None and trainer.is_global_zero:
            logger.warning("%s; training goes on, and saves again later", problem)
        return problem is None


def try_to_save(trainer: Trainer, path: Path, *, weights_only: bool = False) -> OSError | None:
    """Save a checkpoint; give what hindered it, the same in all processes of the run."""
    problem = None
    try:
        trainer.save_checkpoint(path, weights_only=weights_only)
    except OSError as error:
        problem = error
        trainer.strategy.barrier()  # at which the other processes wait
    if trainer.strategy.reduce_boolean_decision(problem is None, all=True):
        return None
    return problem or OSError(f"{path} cannot be written by the first process")


PARTS = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What Lightning writes into a checkpoint of training, and needs to go on from it."""


def read_checkpoint(path: Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint whose checksum was compared; `mmap` reads tensors when they are used.

    Raises ValueError if no run of ours wrote it, or if it was renamed.
    """
    try:
        found = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # pickle's own kinds among them
        if is_oom(error):
            raise
        raise not_of_a_run(path, "it holds more than tensors and plain values") from error
    if not isinstance(found, dict):
        raise not_of_a_run(path, f"it is of type {type(found).__name__}")
    taken = found.get("global_step")
    if _NAME.fullmatch(path.name) and taken not in (None, step_of(path)):
        raise ValueError(
            f"{path} holds the state after step {taken}: the file was renamed; give it its own "
            "name back, or remove it to continue from an earlier checkpoint"
        )
    return found


def require_parts(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a checkpoint lacks what Lightning needs to go on from it."""
    for key, kind in PARTS.items():
        if not isinstance(checkpoint.get(key), kind):
            raise not_of_a_run(path, f"its {key} is {_what(checkpoint.get(key))}")


def _what(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def not_of_a_run(path: str | Path, why: str) -> ValueError:
    """Make the error for a checkpoint that is whole, and that no run of ours wrote."""
    return ValueError(
        f"{path} is not a checkpoint that this run can go on from: {why}; remove it to continue "
        "from an earlier one, or start a run of another name"
    )


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name))


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps taken at a checkpoint."""
    return int(checkpoint.stem.rpartition("-")[2])


def best_checkpoint(folder: Path, step: int) -> Path:
    """Return where the weights after `step` lie, if they were the best that validation had seen."""
    return folder / f"best-{step:08d}.ckpt"


def best_checkpoints(folder: Path) -> list[Path]:
    """List the weights that were the best when they were kept, oldest first."""
    return sorted(path for path in folder.glob("best-*.ckpt") if _BEST.fullmatch(path.name))


def _superseded(folder: Path) -> list[Path]:
    """List the best weights that no checkpoint in the folder knows as its best."""
    oldest = step_of(checkpoints(folder)[0])
    return [path for path in best_checkpoints(folder) if step_of(path) <= oldest][:-1]


def newest_valid(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole; name those that are not. None if there was none.

    Raises ValueError if there were some and all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        problem = find_corruption(path)
        if problem is None:
            return path
        logger.warning("%s is damaged (%s); trying the one before", path, problem)
    if found:
        raise ValueError(f"all {len(found)} checkpoints in {folder} are damaged; start a new run")
    return None


def quarantine(folder: Path, newest: Path | None) -> None:
    """Rename what is newer than the checkpoint in use, and remove what killed processes left."""
    for path in checkpoints(folder):
        if newest is None or path > newest:
            _checksum(path).unlink(missing_ok=True)
            path.rename(path.with_name(f"{path.name}.damaged"))
    for path in best_checkpoints(folder):
        if newest is None or step_of(path) > step_of(newest):
            AtomicCheckpointIO().remove_checkpoint(path)  # it comes again
    for path in folder.glob(".*.tmp-*"):
        path.unlink()


def find_corruption(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file; None if nothing is."""
    checksum = _checksum(path)
    if not checksum.exists():
        return f"{checksum.name} is missing"
    try:
        expected = checksum.read_text(encoding="ascii", errors="replace").strip()
        actual = file_sha256(path)
    except OSError as error:  # a folder, a link to nothing, no permission
        return f"it cannot be read: {error.strerror}"
    return None if actual == expected else f"its sha256 is {actual[:12]}.., not {expected[:12]}.."


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
