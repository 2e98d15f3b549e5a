"""Loggers of a run beside its own files: W&B, a CSV table, TensorBoard, all with the same keys.

Keys are `train/...` and `val/...` during training, `eval/...` for the final evaluation.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from unimem.config import Config
from unimem.settings import LoggerSettings, PretrainedModel
from unimem.training.metrics import Sink

logger = logging.getLogger(__name__)

TRAIN_KEYS = {
    "loss": "train/loss",
    "perplexity": "train/perplexity",
    "learning_rate": "train/lr",
    "gradient_norm": "train/grad_norm",
    "tokens_seen": "train/tokens",
    "tokens_per_second": "train/tokens_per_second",
    "seconds": "train/seconds",
}
"""Keys of loggers for values of metrics.jsonl; a name with a slash stays as it is."""


CSV, TENSORBOARD = "csv", "tensorboard"
"""Folders of the loggers in a run's folder."""


class RunLogger(Protocol):
    """Takes the records of a run.

    `anew`: the logger begins anew with each process, so a continued run logs everything again.
    """

    anew: bool

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log the values of an optimizer step."""
        ...

    def finish(self, finished: bool) -> str | None:
        """Close; `finished`: the run is complete. Return a command for the user, if any."""
        ...


def make_loggers(
    config: Config, folder: Path, record: dict[str, Any], facts: dict[str, Any]
) -> list[RunLogger]:
    """Start the loggers that the settings name; a package is imported only if it is needed.

    Args:
        config: the run's settings.
        folder: the run's folder.
        record: the settings as the run records them.
        facts: what else to filter and group runs by, as `parameters` and `commit`.
    """
    settings, made = config.logger, []
    if settings.mode != "disabled":
        shown = wandb_config(config, record) | facts
        name, tags = folder.name, run_tags(config)
        made.append(WandbLogger(settings, folder, config.study, "train", name, shown, tags))
    if settings.csv:
        made.append(FileLogger(csv_logger(folder)))
    if settings.tensorboard:
        made.append(FileLogger(tensorboard_logger(folder)))
    return made


def as_sink(own: RunLogger) -> Sink:
    """Return a sink that passes lines of metrics.jsonl to a logger."""
    return lambda record: own.log(train_values(record), record["step"])


def replay(records: Sequence[dict[str, Any]], loggers: Sequence[RunLogger]) -> None:
    """Log again, to loggers that begin anew, the lines that a continued run has already."""
    for own in loggers:
        for record in records if own.anew else ():
            own.log(train_values(record), record["step"])


def train_values(record: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a line of metrics.jsonl under their keys, without its step."""
    return {TRAIN_KEYS.get(key, key): value for key, value in record.items() if key != "step"}


def eval_values(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of an evaluation, in nats per token: `eval/nll`, `eval/nll_off`, ...

    `eval/gain` is the gain of own memory over memory off, `eval/gain_over_other` over another
    document's memory; both are positive if own memory helps. Unknown values are left out.
    """
    scores = {use: score["nll"] for use, score in evaluation["scores"].items()}
    own = evaluation["scores"]["own"]
    values = {"eval/nll": own["nll"], "eval/perplexity": own["perplexity"]}
    values["eval/bits_per_byte"] = own.get("bits_per_byte")
    for use, control in scores.items():
        if use != "own":
            values[f"eval/nll_{use}"] = control
            gain = "eval/gain" if use == "off" else f"eval/gain_over_{use}"
            known = None not in (control, scores["own"])
            values[gain] = float(f"{control - scores['own']:.6g}") if known else None
    for name, bound in evaluation.get("bounds", {}).items():
        values[f"eval/bound_{name}"] = bound["nll"]
    values |= {f"eval/{key}": evaluation.get(key) for key in ("documents", "tokens")}
    return {key: value for key, value in values.items() if value is not None}


def wandb_config(config: Config, record: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings, nested; W&B shows `memory.topk` for topk under memory.

    An option of memory is given by its name, with its budgets beside it.
    """
    flat = config.memory.flat(config.num_layers())
    memory = {key.removeprefix("memory."): value for key, value in flat.items()}
    return record | {"memory": memory | {"device": config.memory.device}}


def run_tags(config: Config) -> list[str]:
    """Name the method, the corpus and the model."""
    model = config.model
    if isinstance(model, PretrainedModel):
        shape = Path(model.name).name if Path(model.name).is_dir() else model.name
    else:
        shape = f"{model.num_layers}x{model.hidden_size}"
    return [config.method.name, config.data.kind, shape]


def describe_wandb(settings: LoggerSettings) -> str | None:
    """Return in a line what goes to W&B, and how to change it; None if it was switched off."""
    if settings.mode == "disabled":
        return None
    from unimem.runs.wandb_run import PROJECT, chosen_mode, own_settings

    match chosen_mode(settings):
        case "online":
            project = settings.project or own_settings().project or PROJECT
            return f"online, project {project}; logger.mode=offline or logger=none sends nothing"
        case "offline":
            return "offline, files only (`wandb sync` sends them later); logger=none writes none"
        case "disabled":
            return "off, as W&B's own settings say"


def mirror_evaluation(
    config: Config,
    overrides: Sequence[str],
    evaluation: dict[str, Any],
    folder: Path,
    run_folder: Path,
) -> str | None:
    """Send an evaluation of a finished run to W&B, as a run of its own in the same group.

    Its job type is `eval`, its name RUN/EVALUATION. Nothing is sent if W&B is switched off.
    Every failure is a warning. Returns the command that sends the rest later, if anything is left.

    Args:
        config: the settings of the evaluation.
        overrides: the changes to the run's settings.
        evaluation: the result of `evaluate_all`.
        folder: the evaluation's own folder.
        run_folder: the folder of the run with the weights.
    """
    if config.logger.mode == "disabled":
        return None
    also = {"evaluated_run": run_folder.name, "overrides": list(overrides)}
    shown = wandb_config(config, config.record()) | also
    name = f"{run_folder.name}/{folder.name}"
    tags = run_tags(config)
    run = WandbLogger(config.logger, folder, config.study, "eval", name, shown, tags)
    run.log(eval_values(evaluation), 0)
    return run.finish(finished=True)


class WandbLogger:
    """Sends values to W&B; a failure there does not stop the run."""

    anew = False

    def __init__(
        self,
        settings: LoggerSettings,
        folder: Path,
        study: str,
        job_type: str,
        name: str,
        config: dict[str, Any],
        tags: Sequence[str],
    ):
        from unimem.runs.wandb_run import WandbRun

        self._run = WandbRun(
            settings,
            folder,
            group=settings.group or os.environ.get("WANDB_RUN_GROUP") or study,
            job_type=job_type,
            name=name,
            config=config,
            tags=tags,
        )

    def log(self, values: dict[str, Any], step: int) -> None:
        """Send values."""
        self._run.log(values, step=step)

    def finish(self, finished: bool) -> str | None:
        """Close, and return the command that sends what is left."""
        return self._run.finish({} if finished else None)


class FileLogger:
    """Writes through one of Lightning's loggers, each record at once; a full disk is a warning."""

    anew = True

    def __init__(self, made: Logger):
        self._logger: Logger | None = made

    def log(self, values: dict[str, Any], step: int) -> None:
        """Write values."""
        numbers = {key: value for key, value in values.items() if _is_finite(value)}

        def write(own: Logger) -> None:
            own.log_metrics(numbers, step)
            own.save()

        self._attempt(write)

    def finish(self, finished: bool) -> None:
        """Close."""
        self._attempt(lambda own: own.finalize("success" if finished else "aborted"))
        self._logger = None

    def _attempt(self, action: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            action(self._logger)
        except OSError as error:
            logger.warning("%s is left out from here on: %s", self._logger.log_dir, error)
            self._logger = None


def csv_logger(folder: Path) -> CSVLogger:
    """Return Lightning's CSV logger, which writes `csv/metrics.csv` in a run's folder anew."""
    shutil.rmtree(folder / CSV, ignore_errors=True)
    return CSVLogger(folder, name="", version=CSV)


def tensorboard_logger(folder: Path) -> TensorBoardLogger:
    """Return Lightning's TensorBoard logger, which writes `tensorboard/` in a run's folder anew."""
    shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
    return TensorBoardLogger(folder, name="", version=TENSORBOARD, default_hp_metric=False)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
