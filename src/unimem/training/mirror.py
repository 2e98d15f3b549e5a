"""Weights & Biases beside the run's own records: it may fail, the run may not."""

import logging
import netrc
import os
import secrets
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb

from unimem.settings import LoggerSettings

logger = logging.getLogger(__name__)

RUN_ID = "wandb_id"
"""File that keeps the run's id, so that a continued run goes on in the same place."""


class Mirror:
    """Sends records to W&B, or to files under the run's folder for `wandb sync`.

    Never asks for a key, never waits longer than `init_timeout`. Whatever goes wrong is told once;
    then records go to files, and if these fail too, nowhere.
    """

    def __init__(self, settings: LoggerSettings, folder: Path, study: str, config: dict[str, Any]):
        self._run: Any = None
        mode = chosen_mode(settings)
        attempts = ["online", "offline"] if mode == "online" else [mode]
        for attempt in attempts:
            try:
                self._run = _start(settings, attempt, folder, study, config)
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
                reason = " ".join(str(error).split())[:200]
                logger.warning("W&B does not start %s: %s", attempt, reason)
                # Else its service would hold on to the run's id.
                wandb.teardown()

    def __call__(self, record: dict[str, Any]) -> None:
        """Send a record of training."""
        self._try(lambda run: run.log(record, step=record["step"]))

    def finish(self, summary: dict[str, Any] | None) -> None:
        """Send the result, if there is one, and end."""
        if summary is not None:
            self._try(lambda run: run.summary.update(summary))
        self._try(lambda run: run.finish(exit_code=0 if summary is not None else 1))
        self._run = None

    def _try(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            logger.warning("W&B fails and is left out from here on: %s", error)
            self._run = None


def chosen_mode(settings: LoggerSettings) -> Literal["online", "offline", "disabled"]:
    """Turn `auto` into $WANDB_MODE, else online if a key exists, else offline."""
    if settings.mode != "auto":
        return settings.mode
    given = os.environ.get("WANDB_MODE")
    if given in ("online", "offline", "disabled"):
        return given
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    own = urlsplit(wandb.Settings().base_url).hostname
    return bool({own, "api.wandb.ai"} & hosts.keys())


def _start(
    settings: LoggerSettings, mode: str, folder: Path, study: str, config: dict[str, Any]
) -> Any:
    file = folder / RUN_ID
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="ascii")
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group or study,
        job_type="train",
        name=folder.name,
        id=file.read_text(encoding="ascii"),
        resume="allow" if mode == "online" else None,
        dir=folder,
        config=config,
        mode=mode,  # type: ignore[arg-type]
        reinit="finish_previous",
        settings=wandb.Settings(
            init_timeout=settings.init_timeout, console="off", silent=True, save_code=False
        ),
    )
