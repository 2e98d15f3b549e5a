"""How a running sweep looks: a live table on a terminal, plain lines elsewhere."""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unimem.results.frame_tables import short
from unimem.studies.run.cell_state import last_lines, log_file, perplexity, progress
from unimem.studies.run.runner import State, Status
from unimem.words import printable

_ORDER = (
    State.FAILED,
    State.RUNNING,
    State.ELSEWHERE,
    State.WAITING,
    State.STOPPED,
    State.FINISHED,
)
"""What matters comes first: a table may be longer than the terminal."""


class Lines:
    """A line for each cell that starts, ends or fails; every `EVERY` seconds for those that run."""

    EVERY = 60.0

    def __init__(self, console: Console):
        self._console = console
        self._shown = time.monotonic()

    def changed(self, status: Status) -> None:
        """Print the new state of a cell; after a failure the end of its log too."""
        print_lines(self._console, f"{status.state:<9} {status.cell.label}{_detail(status)}")
        if status.state == State.FAILED:
            print_lines(self._console, *_failure(status))

    def look(self, statuses: Sequence[Status]) -> None:
        """Print how far the running cells are, every `EVERY` seconds."""
        if time.monotonic() - self._shown < self.EVERY:
            return
        self._shown = time.monotonic()
        for status in statuses:
            if status.state == State.RUNNING and any(numbers := _numbers(status)):
                step, perplexity, left = numbers
                ending = f", {left} left" if left else ""
                line = f"  step {step}, perplexity {perplexity}{ending}"
                print_lines(self._console, f"{status.state:<9} {status.cell.label}{line}")


class LiveTable:
    """A table of all cells, drawn anew every second; failures stay above it."""

    def __init__(self, console: Console):
        self._console = console
        # Without a thread of its own: cells are forked from this process.
        self._live = Live(console=console, auto_refresh=False)
        self._shown = 0.0

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def changed(self, status: Status) -> None:
        """Print a failure; everything else is in the table."""
        self._shown = 0.0
        if status.state == State.FAILED:
            print_lines(
                self._console, f"failed {status.cell.label}{_detail(status)}", *_failure(status)
            )

    def look(self, statuses: Sequence[Status]) -> None:
        """Draw, if a second has passed or a cell has changed."""
        if time.monotonic() - self._shown > 1:
            self._shown = time.monotonic()
            self._live.update(table(statuses), refresh=True)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are, above a table if there is one; control characters as escapes."""
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def table(statuses: Sequence[Status]) -> Table:
    """Return a table of cells: state, progress, perplexity, time left."""
    shown = Table(title=summary(statuses), title_justify="left", box=None, padding=(0, 2, 0, 0))
    shown.add_column("cell", overflow="fold")
    shown.add_column("state")
    for name in ("step", "perplexity", "left"):
        shown.add_column(name, justify="right")
    for status in sorted(statuses, key=lambda s: _ORDER.index(s.state)):
        # not a string, which may hold what rich takes for its markup
        label = Text(printable(status.cell.label, one_line=True))
        shown.add_row(label, str(status.state), *_numbers(status))
    return shown


def summary(statuses: Sequence[Status]) -> str:
    """Count the cells: `12 done, 3 resumed, 1 failed`."""
    states = Counter(status.state for status in statuses)
    done = states.pop(State.FINISHED, 0)
    counts: dict[str, int] = {
        "done before": sum(s.before for s in statuses),
        "resumed": sum(s.resumed for s in statuses),
        **{str(state): states[state] for state in _ORDER},
    }
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{done} of {len(statuses)} done{f', {found}' if found else ''}"


def _detail(status: Status) -> str:
    match status.state:
        case State.RUNNING if status.resumed:
            return "  resumed"
        case State.FINISHED:
            took = "before" if status.before else f"{status.seconds:.0f} s"
            return f"  perplexity {short(perplexity(status.cell))}  {took}"
        case State.FAILED:
            return f"  {status.reason}"
        case _:
            return ""


def _failure(status: Status) -> list[str]:
    log = log_file(status.cell)
    return (
        [f"  {x}" for x in (*last_lines(status.cell), f"whole log: {log}")] if log.exists() else []
    )


def _numbers(status: Status) -> Sequence[str]:
    if status.state == State.FINISHED:
        return "", short(perplexity(status.cell)), ""
    steps = status.cell.config.trainer.max_steps
    at_work = status.state in (State.RUNNING, State.ELSEWHERE)
    now = progress(status.cell) if at_work else None
    if now is None:
        return "", "", ""
    if steps is None:  # an epoch, whose steps the run counts
        return str(now.step), short(now.perplexity), ""
    left = (steps - now.step) * now.seconds / now.step
    return f"{now.step}/{steps}", short(now.perplexity), _clock(left)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
