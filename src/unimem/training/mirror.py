"""Training in Weights & Biases, beside the run's own records."""

from pathlib import Path
from typing import Any

from unimem.results.wandb_run import WandbRun
from unimem.settings import LoggerSettings


class Mirror:
    """Sends the records of a run to W&B; whatever happens there, the run goes on."""

    def __init__(self, settings: LoggerSettings, folder: Path, study: str, config: dict[str, Any]):
        self._run = WandbRun(
            settings,
            folder,
            group=settings.group or study,
            job_type="train",
            name=folder.name,
            config=config,
        )

    def __call__(self, record: dict[str, Any]) -> None:
        """Send a record of training."""
        self._run.log(record, step=record["step"])

    def finish(self, summary: dict[str, Any] | None) -> None:
        """Send the result, if there is one, and end."""
        self._run.finish(summary)
