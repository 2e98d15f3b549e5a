"""A progress bar on a terminal, a line of log now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show the progress of a loop; call what is yielded once per item.

    Args:
        description: what is done, in a few words.
        total: number of items; None if unknown.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda: bar.advance(task)
        return

    begin = last = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info("%s: %d of %s", description, done, "?" if total is None else total)

    yield advance
    logger.info("%s: %d in %.0f s", description, done, time.monotonic() - begin)
