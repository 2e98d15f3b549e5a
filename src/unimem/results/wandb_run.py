"""Weights & Biases beside our own records: it may fail, what it mirrors may not."""

import logging
import netrc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import wandb

logger = logging.getLogger(__name__)

RUN_ID = "wandb_id"
"""File that keeps the run's id, so that a continued run goes on in the same place."""


class Connection(Protocol):
    """Where to, as in `conf/logger`."""

    @property
    def mode(self) -> Literal["auto", "online", "offline", "disabled"]:
        """How records are sent, or that they are not."""
        ...

    @property
    def project(self) -> str:
        """The project."""
        ...

    @property
    def entity(self) -> str | None:
        """Whose project; None is the key's owner."""
        ...

    @property
    def init_timeout(self) -> int:
        """Seconds to wait for the server."""
        ...


class WandbRun:
    """Sends records to W&B, or to files under `folder` for `wandb sync`.

    Never asks for a key, never waits longer than `init_timeout`. Whatever goes wrong is told once;
    then records go to files, and if these fail too, nowhere.
    """

    def __init__(
        self,
        connection: Connection,
        folder: Path,
        *,
        group: str,
        job_type: str,
        name: str,
        config: dict[str, Any],
    ):
        self._run: Any = None
        mode = chosen_mode(connection)
        for attempt in ["online", "offline"] if mode == "online" else [mode]:
            try:
                self._run = wandb.init(
                    project=connection.project,
                    entity=connection.entity,
                    group=group,
                    job_type=job_type,
                    name=name,
                    id=_run_id(folder),
                    resume="allow" if attempt == "online" else None,
                    dir=folder,
                    config=config,
                    mode=attempt,  # type: ignore[arg-type]
                    reinit="finish_previous",
                    settings=wandb.Settings(
                        init_timeout=connection.init_timeout,
                        console="off",
                        silent=True,
                        save_code=False,
                    ),
                )
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
                reason = " ".join(str(error).split())[:200]
                logger.warning("W&B does not start %s: %s", attempt, reason)
                # Else its service would hold on to the run's id.
                wandb.teardown()

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Send values."""
        self.attempt(lambda run: run.log(values, step=step))

    def attempt(self, action: Callable[[Any], object]) -> None:
        """Do something with the run of W&B, if there is one."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
            logger.warning("W&B fails and is left out from here on: %s", error)
            self._run = None

    def finish(self, summary: dict[str, Any] | None) -> None:
        """Send the summary, if the work came to its end, and end."""
        if summary is not None:
            self.attempt(lambda run: run.summary.update(summary))
        self.attempt(lambda run: run.finish(exit_code=0 if summary is not None else 1))
        self._run = None


def chosen_mode(connection: Connection) -> Literal["online", "offline", "disabled"]:
    """Turn `auto` into $WANDB_MODE, else online if a key exists, else offline."""
    if connection.mode != "auto":
        return connection.mode
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


def _run_id(folder: Path) -> str:
    file = folder / RUN_ID
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="ascii")
    return file.read_text(encoding="ascii")
