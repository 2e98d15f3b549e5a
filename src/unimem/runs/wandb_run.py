"""Runs in Weights & Biases, beside our own records; a failure there stops nothing."""

import logging
import netrc
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Timer
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import wandb
from pydantic import ValidationError

logger = logging.getLogger(__name__)

RUN_ID = "wandb_id"
"""File with the id of the W&B run, so that a continued run continues there."""

PROJECT = "unimem"
"""The project if neither `logger.project` nor W&B's own settings name one."""

Mode = Literal["online", "offline", "disabled"]

_LONGEST_TAG = 64


class Connection(Protocol):
    """Settings of the connection, as in `conf/train.yaml` under `logger`."""

    @property
    def mode(self) -> Literal["auto", "online", "offline", "disabled"]:
        """How records are sent."""
        ...

    @property
    def project(self) -> str | None:
        """The project; None is the project of W&B's own settings, else `PROJECT`."""
        ...

    @property
    def entity(self) -> str | None:
        """The owner of the project; None: the entity of W&B's settings, else the key's owner."""
        ...

    @property
    def tags(self) -> Sequence[str]:
        """Tags beside the default tags of a run."""
        ...

    @property
    def init_timeout(self) -> int:
        """Seconds to wait for the server at the start."""
        ...

    @property
    def finish_timeout(self) -> int:
        """Seconds to wait for the server at the end."""
        ...


LEAVING = 3
"""Seconds to wait for the server if the run was interrupted: batch systems do not wait long."""


class WandbRun:
    """Sends records to W&B, or to files under `folder` for `wandb sync`.

    Never asks for a key, and never waits longer than `init_timeout` to begin and `finish_timeout`
    to end (`LEAVING` after an interruption). Every failure is a warning: if the server cannot be
    reached at the start, the run is offline; if files cannot be written either, nothing is sent.

    Args:
        connection: settings of the connection.
        folder: W&B writes into `folder/wandb`.
        group: the group of the run.
        job_type: train, eval or report.
        name: the name of the run.
        config: settings to filter and group runs by, nested.
        tags: tags beside the tags of `connection` and of `WANDB_TAGS`.
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
        tags: Sequence[str] = (),
    ):
        self._run: Any = None
        self._connection = connection
        self._mode = mode = chosen_mode(connection)
        if mode == "disabled":
            return
        own = own_settings()
        if mode == "offline" and _asked_to_send(connection):
            logger.warning(
                "W&B finds no key for %s and stays offline; `wandb login` or WANDB_API_KEY gives "
                "one",
                own.base_url,
            )
        _leave_out_telemetry()
        for attempt in ["online", "offline"] if mode == "online" else [mode]:
            try:
                self._run = wandb.init(
                    project=connection.project or own.project or PROJECT,
                    entity=connection.entity,
                    group=group,
                    job_type=job_type,
                    name=name,
                    tags=_tags([*tags, *connection.tags, *(own.run_tags or ())]),
                    id=_run_id(folder),
                    resume="allow" if attempt == "online" else None,
                    dir=folder,
                    config=config,
                    mode=attempt,  # type: ignore[arg-type]
                    reinit="finish_previous",
                    settings=wandb.Settings(
                        init_timeout=connection.init_timeout,
                        finish_timeout=connection.finish_timeout,
                        finish_timeout_raises=True,
                        console="off",
                        silent=True,
                        save_code=False,
                    ),
                )
                self._mode = attempt
                return
            except Exception as error:  # noqa: BLE001 - the run goes on
                reason = " ".join(str(error).split())[:200]
                logger.warning("W&B does not start %s: %s", attempt, reason)
                # Its service would keep the run's id.
                _teardown()
            except BaseException:  # a signal
                _kill_service()
                raise

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Send values."""
        self.attempt(lambda run: run.log(values, step=step))

    def attempt(self, action: Callable[[Any], object]) -> None:
        """Call `action` with the W&B run, if there is one; a failure is a warning."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
            logger.warning("W&B fails and is left out from here on: %s", error)
            self._run = None

    def finish(self, summary: dict[str, Any] | None) -> str | None:
        """Send the summary, if the run is complete, and close; may be called more than once.

        Returns the command that sends what the server lacks, None if it has everything.
        """
        run, self._run = self._run, None
        if run is None:
            return None
        command = f"wandb sync {Path(run.dir).parent}"
        left = Event()
        timer = Timer(LEAVING, lambda: (left.set(), _kill_process()))
        if summary is None:
            timer.start()
        try:
            if summary:
                run.summary.update(summary)
            run.finish(exit_code=0 if summary is not None else 1)
        except TimeoutError:
            logger.warning(
                "W&B: the server did not take everything within logger.finish_timeout=%d s",
                self._connection.finish_timeout,
            )
            return command
        except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
            if left.is_set():
                _kill_service()
                logger.warning("W&B: the server did not take everything within %d s", LEAVING)
            else:
                logger.warning("W&B does not end: %s", " ".join(str(error).split())[:200])
            return command
        except BaseException:  # a signal
            _kill_service()
            raise
        finally:
            timer.cancel()
        return command if self._mode == "offline" else None


def _leave_out_telemetry() -> None:
    """Let W&B send nothing about its own use: at exit it would wait for the server to take it.

    That is for half a minute if the server is silent. W&B has no setting for this.
    """
    with suppress(ImportError):  # other versions have none
        from wandb.analytics.opentelemetry.opentelemetry_proxy import disable

        disable()


def _teardown() -> None:
    with suppress(SystemExit):  # of a service that did not end well
        wandb.teardown()


def _kill_service() -> None:
    """End W&B's own process at once: Python would wait for it at exit, and it for the server.

    What it has written stays for `wandb sync`. W&B has no public way to do this.
    """
    if _kill_process():
        with suppress(Exception):  # the connection is lost, of course
            _teardown()


def _kill_process() -> bool:
    """Kill W&B's own process, and say whether there was one."""
    connection = getattr(wandb.setup(), "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    if process is None:
        return False
    process.kill()
    return True


def chosen_mode(connection: Connection) -> Mode:
    """Turn `auto` into what W&B's own settings say: `online` only if there is a key.

    W&B's own settings are its environment variables and its settings files (`wandb offline`,
    `wandb disabled`). Online without a key is offline: W&B would ask for one on a terminal, and
    wait.
    """
    if connection.mode in ("offline", "disabled"):
        return connection.mode
    own = own_settings()
    if connection.mode == "auto":
        if own.mode in ("offline", "dryrun"):
            return "offline"
        if own.mode == "disabled" or _is_true(os.environ.get("WANDB_DISABLED", "")):
            return "disabled"
    return "online" if _has_key(own) else "offline"


def own_settings() -> wandb.Settings:
    """Read W&B's settings files and environment variables as W&B does, without starting it."""
    own = wandb.Settings(silent=True)
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    own.settings_system = str(Path(folder).expanduser() / "settings")
    own.update_from_system_settings()
    for name, value in os.environ.items():
        if name.startswith("WANDB_"):
            try:
                own.update_from_env_vars({name: value})
            except (ValidationError, ValueError, TypeError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
                logger.warning("%s=%s is ignored: %s", name, value, reason)
    return own


def _asked_to_send(connection: Connection) -> bool:
    """Whether online was asked for by name, here or in the environment."""
    by_name = os.environ.get("WANDB_MODE") in ("online", "run", "shared")
    return connection.mode == "online" or (connection.mode == "auto" and by_name)


def _has_key(own: wandb.Settings) -> bool:
    if own.api_key or own.identity_token_file:
        return True
    place = urlsplit(own.base_url).netloc
    hosts = [place]
    if own.base_url == wandb.Settings.model_fields["base_url"].default:
        hosts.append("api.wandb.ai")
    try:
        found = netrc.netrc(_netrc_file())
    except (OSError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) for host in hosts)


def _netrc_file() -> Path:
    if given := os.environ.get("NETRC"):
        return Path(given).expanduser()
    names = ("~/.netrc", "~/_netrc")
    found = [path for name in names if (path := Path(name).expanduser()).exists()]
    return found[0] if found else Path(names[0]).expanduser()


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes", "on", "y", "t")


def _tags(tags: Sequence[str]) -> list[str]:
    """Drop what is empty or there twice; W&B takes 1 to 64 characters."""
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag))


def _run_id(folder: Path) -> str:
    file = folder / RUN_ID
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="ascii")
    return file.read_text(encoding="ascii")
