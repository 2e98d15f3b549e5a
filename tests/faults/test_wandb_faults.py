"""Whatever happens to W&B or its server, a run ends as without it, and soon."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from faults.driver import STEPS, Started, settings, wait_for_step
from helpers.wandb_server import wandb_server
from training.conftest import metrics, same_weights

from unimem.runs.records import read_result

PLAIN = settings()
MIRRORED = settings(
    "logger=wandb", "logger.mode=online", "logger.init_timeout=3", "logger.finish_timeout=3"
)
LONG = settings(*MIRRORED, "trainer.max_steps=100000", "trainer.checkpoint_every=100000")


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a machine with a key of W&B and nothing else of it."""
    home = tmp_path / "home"
    home.mkdir()
    folders = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    own = {name: str(home / name) for name in folders}
    return own | {
        "HOME": str(home),
        "NETRC": str(home / "netrc"),
        "WANDB_MODE": "online",
        "WANDB_API_KEY": "k" * 40,
    }


@contextmanager
def refusing() -> Iterator[str]:
    yield "http://127.0.0.1:9"


@contextmanager
def black_hole() -> Iterator[str]:
    """A port that answers no SYN: its queue is full, and nobody takes from it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        time.sleep(0.1)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in clients:
            client.close()


def equals_without_wandb(run: Path, whole: Path) -> bool:
    """Compare every line of metrics, the last weights, and what was found at the end."""
    one, other = (read_result(folder)["evaluation"]["scores"] for folder in (run, whole))
    assert len(metrics(run)) == STEPS
    assert {k: v["nll"] for k, v in one.items()} == {k: v["nll"] for k, v in other.items()}
    return metrics(run) == metrics(whole) and same_weights(run, whole, STEPS)


SERVERS = {
    "refused": refusing,
    "black hole": black_hole,
    "401": lambda: wandb_server(status=401),
    "500": lambda: wandb_server(status=500),
    "slow": lambda: wandb_server(seconds=2),
    "silent": lambda: wandb_server(silent=True),
}


@pytest.mark.fault(
    "W1",
    "W&B's server refuses, drops or does not answer connections, answers 401, 500 or slowly",
    "the run starts within a minute and ends, equal to one without W&B",
)
@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_fails_at_the_start(tmp_path, commands, undisturbed, machine, injected, kind):
    run = tmp_path / "out" / "runs" / "a"
    with SERVERS[kind]() as address:
        begin = time.monotonic()
        process = commands.fork(
            *MIRRORED, f"output={tmp_path / 'out'}", **machine, WANDB_BASE_URL=address
        )
        wait_for_step(run, 1, process)
        assert time.monotonic() - begin < 60
        assert process.wait() == 0, process.said
    injected()
    assert "W&B" in process.said and "Traceback" not in process.said
    assert "wandb sync" in process.said, process.said
    assert equals_without_wandb(run, undisturbed(PLAIN))
    injected.held()


@pytest.mark.fault(
    "W2",
    "W&B's server dies or falls silent during the run",
    "the run ends within its deadline, equal to one without W&B",
)
@pytest.mark.parametrize("then", ["gone", "silent"])
def test_a_server_that_fails_during_the_run(
    tmp_path, commands, undisturbed, machine, injected, then
):
    run = tmp_path / "out" / "runs" / "a"
    begun = Event()
    with wandb_server(then=then, begun=begun) as address:
        process = commands.fork(
            *MIRRORED, f"output={tmp_path / 'out'}", **machine, WANDB_BASE_URL=address
        )
        wait_for_step(run, STEPS, process)
        assert begun.is_set()
        begin = time.monotonic()
        assert process.wait() == 0, process.said
        assert time.monotonic() - begin < 40
    injected()
    assert "wandb sync" in process.said and "Traceback" not in process.said
    assert equals_without_wandb(run, undisturbed(PLAIN))
    injected.held()


def service_of(process: Started) -> int:
    """Return the pid of W&B's own process, a descendant of the run's process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            environment = (path.parent / "environ").read_bytes()
        except OSError:
            continue
        if b"wandb-core" in words[0] and str(process.folder.parents[1]).encode() in environment:
            return int(path.parent.name)
    raise AssertionError(f"W&B's process was not found: {process.said}")


@pytest.mark.fault(
    "W3", "W&B's own process is killed during the run", "the run ends, equal to one without W&B"
)
def test_the_process_of_wandb_is_killed(tmp_path, commands, undisturbed, machine, injected):
    run = tmp_path / "out" / "runs" / "a"
    offline = settings(*MIRRORED, "logger.mode=offline", "trainer.max_steps=120")
    process = commands.fork(*offline, f"output={tmp_path / 'out'}", **machine)
    wait_for_step(run, 10, process)
    os.kill(service_of(process), signal.SIGKILL)
    injected()
    assert process.wait() == 0, process.said
    assert "W&B" in process.said and "Traceback" not in process.said
    whole = undisturbed(settings("trainer.max_steps=120"))
    assert metrics(run) == metrics(whole) and same_weights(run, whole, 120)
    injected.held()


@pytest.mark.fault(
    "W4",
    "SIGTERM while W&B's server does not answer",
    "the process ends within 20 seconds, with a checkpoint if it was training",
)
@pytest.mark.parametrize("training", [True, False])
def test_a_signal_while_the_server_is_silent(tmp_path, commands, machine, injected, training):
    run = tmp_path / "out" / "runs" / "a"
    with wandb_server(silent=not training, then="silent") as address:
        process = commands.fork(
            *settings(*LONG, "logger.init_timeout=300", "logger.finish_timeout=300"),
            f"output={tmp_path / 'out'}",
            **machine,
            WANDB_BASE_URL=address,
        )
        if training:
            wait_for_step(run, 3, process)
        else:
            deadline = time.monotonic() + 60
            while not list(run.glob("wandb/run-*")):
                assert process.poll() is None and time.monotonic() < deadline, process.said
                time.sleep(0.05)
        begin = time.monotonic()
        process.send(signal.SIGTERM)
        injected()
        assert process.wait() == 143, process.said
        assert time.monotonic() - begin < 20
    assert "Traceback" not in process.said
    assert not training or len(list(run.glob("checkpoints/*.ckpt"))) == 1
    injected.held()
