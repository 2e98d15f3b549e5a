"""State that Lightning's checkpoints leave out: memory and random state of every process."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from unimem.memory.bank import MemoryBank
from unimem.model.attach import attached
from unimem.runs.environment import numerics, variables, versions
from unimem.runs.signature import code_digest
from unimem.training.checkpoint import not_of_a_run, read_checkpoint, require_parts
from unimem.training.metrics import MetricsFile
from unimem.training.module import LitUniMem
from unimem.training.out_of_memory import is_oom

KEY = "unimem"


class ProcessState(Callback):
    """Saves the memory and the random state of all processes in checkpoints, and restores them.

    The position in the data is saved by Lightning with `SegmentStream`, which counts the rows of
    all processes. Plain values and tensors only: checkpoints load with `weights_only=True`.
    """

    def __init__(self, corpus_digest: str, settings: str, metrics: MetricsFile, log: Any):
        self._corpus_digest, self._settings = corpus_digest, settings
        self._metrics = metrics
        self._log = log
        self._loaded: dict[str, Any] | None = None
        self.restored = False
        """Whether a checkpoint was restored completely."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the state of all processes."""
        assert isinstance(pl_module, LitUniMem)
        own = {"bank": _copy(pl_module.bank), "random": random_state()}
        states: list[Any] = [own]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, own)
        checkpoint[KEY] = {
            "processes": states,
            "corpus": self._corpus_digest,
            "settings": self._settings,
            "numerics": circumstances(),
        }
        if trainer.is_global_zero:  # it writes the checkpoint
            checkpoint[KEY]["metrics"] = self._metrics.state()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep this process's part. Raises ValueError if the run cannot continue from it."""
        saved = checkpoint[KEY]  # whose form `saved_state` has checked
        if len(saved["processes"]) != trainer.world_size:
            raise ValueError(
                f"the checkpoint is of {len(saved['processes'])} processes, but these are "
                f"{trainer.world_size}; use as many devices and nodes as before"
            )
        self._loaded = saved["processes"][trainer.global_rank]
        on_gpu = pl_module.device.type == "cuda"
        self._log(exactness(saved["numerics"], circumstances(), on_gpu=on_gpu))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state, after everything that could draw random numbers."""
        if self._loaded is None:
            return
        assert isinstance(pl_module, LitUniMem)
        bank = self._loaded["bank"]
        if bank is not None:
            layers = bank["layers"]
            bank = move_data_to_device(bank | {"layers": {}}, pl_module.device)
            if not attached(pl_module.model).plan.offload:
                layers = move_data_to_device(layers, pl_module.device)
            pl_module.bank = MemoryBank.from_state_dict(bank | {"layers": layers})
        set_random_state(self._loaded["random"])
        self._loaded = None
        _require_shapes(trainer)
        self.restored = True


def circumstances() -> dict[str, Any]:
    """Return all that must be equal for a continued run to repeat the bits of an uninterrupted one.

    Code, versions, threads, devices, determinism, and the variables by which libraries choose
    kernels.
    """
    return {
        **versions(),
        **numerics(),  # whose torch also says of which build it is
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "code": code_digest()[:12],
        **{f"${name}": value for name, value in variables().items()},
    }


def exactness(before: Mapping[str, Any], now: Mapping[str, Any], *, on_gpu: bool = False) -> str:
    """Whether a continued run repeats the uninterrupted one bit for bit.

    On a GPU only under deterministic algorithms: the backward kernels of attention add up their
    blocks in no fixed order.
    """
    names = [*now, *(key for key in before if key not in now)]
    reasons = [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in names
        if before.get(key) != now.get(key)
    ]
    if on_gpu and not torch.are_deterministic_algorithms_enabled():
        reasons.append("gradients on a GPU are summed in no fixed order")
    return f"exact resume: no, because {', '.join(reasons)}" if reasons else "exact resume: yes"


@contextmanager
def explain_restore_errors(checkpoint: Path | None, trainer: Trainer) -> Iterator[None]:
    """Name the checkpoint if an error is raised while it is restored.

    Raises ValueError then: an intact file may hold another model's weights, or be of another
    program.
    """
    try:
        yield
    except Exception as error:
        callbacks: list[Any] = getattr(trainer, "callbacks")  # noqa: B009 (set by a connector)
        (state,) = (each for each in callbacks if isinstance(each, ProcessState))
        if checkpoint is None or state.restored or is_oom(error):
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise not_of_a_run(checkpoint, why) from error


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """Return what `ProcessState` put into a checkpoint, without reading the tensors.

    Raises ValueError if it is not of that form.
    """
    found = read_checkpoint(checkpoint, mmap=True)
    require_parts(found, checkpoint)
    try:
        return _Saved.model_validate(found.get(KEY)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (KEY, *first["loc"])))
        raise not_of_a_run(checkpoint, f"{place}: {first['msg']}") from None


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _Bank(_Form):
    position: Tensor
    layers: dict[int, dict[str, Any]]
    soft: dict[str, Any] | None
    hidden: Tensor | None
    open: dict[str, Any] | None = None


class _Random(_Form):
    python: list[Any]
    numpy: dict[str, Any]
    torch: Tensor
    cuda: list[Tensor]


class _Process(_Form):
    bank: _Bank | None
    random: _Random


class _Metrics(_Form):
    lines: int
    sha256: str
    lost: int


class _Saved(_Form):
    """What `ProcessState` saves; fields with a default are absent in older checkpoints."""

    processes: list[_Process]
    corpus: str
    numerics: dict[str, Any]
    settings: str | None = None
    metrics: _Metrics | None = None


def _require_shapes(trainer: Trainer) -> None:
    """Raise ValueError if the optimizer's moments are not of the weights' shapes."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return  # other strategies shard the moments
    for optimizer in trainer.optimizers:
        for weight, moments in optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != weight.shape:
                    raise ValueError(
                        f"{name} of the optimizer has the shape {list(value.shape)} for a weight "
                        f"of {list(weight.shape)}"
                    )


def require_same_run(checkpoint: Path, corpus_digest: str, settings: str) -> None:
    """Refuse to continue from a checkpoint of other documents or settings.

    Raises ValueError if the checkpoint is not of this run.
    """
    saved = saved_state(checkpoint)
    if (before := saved["corpus"]) != corpus_digest:
        raise ValueError(
            f"the corpus has changed since the run began (digest {corpus_digest[:12]}, "
            f"it was {before[:12]} in {checkpoint}); bring those documents back, or start a new run"
        )
    if saved["settings"] not in (None, settings):
        raise not_of_a_run(checkpoint, "it was written by a run with other settings")


def random_state() -> dict[str, Any]:
    """Return the state of python's, NumPy's and torch's generators, as ints, lists and tensors."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "python": [version, list(numbers), gauss],
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": key}})
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])


def _copy(bank: MemoryBank | None) -> dict[str, Any] | None:
    """Return the bank's tensors on the CPU, copied out of the buffers that they are views of."""
    if bank is None:
        return None
    rows = torch.arange(len(bank.position), device=bank.position.device)
    return move_data_to_device(bank.rows(rows).state_dict(), torch.device("cpu"))
