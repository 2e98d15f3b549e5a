"""Faults that are injected for real, and counted: make test-faults."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.driver import Commands, Disturbed, Undisturbed, fork_server, settings
from faults.table import rewritten, sums
from training.conftest import LIGHTNING, Runs


def pytest_addoption(parser):
    parser.addoption("--fault-table", metavar="FILE", help="write the table of faults to this page")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.filterwarnings(LIGHTNING))
        if item.get_closest_marker("fault"):
            item.add_marker(pytest.mark.slow)


@dataclass
class Injected:
    """Counts the faults that came, and those in which the promise was kept."""

    count: int = 0
    kept: int = 0

    def __call__(self, number: int = 1) -> None:
        """Count faults, once it is certain that they came."""
        self.count += number

    def held(self, number: int = 1) -> None:
        """Count faults whose promise was kept, once that was compared."""
        self.kept += number


@pytest.fixture
def injected() -> Injected:
    return Injected()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    marker = pyfuncitem.get_closest_marker("fault")
    if marker is None:
        return (yield)
    injected: Injected = pyfuncitem.funcargs["injected"]
    try:
        given = yield
    finally:
        counts = injected.count, injected.kept
        pyfuncitem.user_properties.append(("fault", (list(marker.args), *counts)))
    if not injected.count or injected.kept != injected.count:
        pytest.fail(f"{injected.kept} promises held in {injected.count} faults", pytrace=False)
    return given


def pytest_terminal_summary(terminalreporter, config):
    stats = terminalreporter.stats
    rows = sums(report for name in ("passed", "failed") for report in stats.get(name, ()))
    if not rows:
        return
    terminalreporter.section("faults")
    for row in rows:
        counts = f"{row.injected:>5} injected {row.held:>5} held {row.seconds:>6.1f} s"
        terminalreporter.write_line(f"{row.id:<3} {counts}  {row.fault}: {row.promise}")
    total = sum(row.injected or 0 for row in rows)
    terminalreporter.write_line(f"{len(rows)} rows, {total} faults")
    if page := config.getoption("--fault-table", None):
        path = Path(page)
        path.write_text(rewritten(path.read_text(), rows))


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path / "out")


@pytest.fixture(scope="session")
def forks():
    with fork_server() as process:
        yield process


@pytest.fixture
def commands(tmp_path, forks) -> Iterator[Commands]:
    """Starts commands; whatever still runs at the end of the test is killed."""
    commands = Commands(tmp_path / "commands", forks)
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, worker_id, forks) -> Undisturbed:
    """Gives the run of some arguments that nothing happened to."""
    base = tmp_path_factory.getbasetemp()
    return Undisturbed((base if worker_id == "master" else base.parent) / "undisturbed", forks)


@pytest.fixture
def disturbed(commands, tmp_path):
    """Makes a run to disturb, of the arguments that `settings` gives."""

    def disturbed(*more: str, **method) -> Disturbed:
        return Disturbed(commands, tmp_path / "out", settings(*more, **method))

    return disturbed
