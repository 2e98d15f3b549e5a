import logging
import os

# Nothing may look for the network; the libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch
from helpers.composed import compose_once
from hypothesis import settings

# The same examples each time: a test that fails by chance does not show what changed.
settings.register_profile("repeated", derandomize=True)
settings.load_profile("repeated")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _composed_once():
    with pytest.MonkeyPatch.context() as monkeypatch:
        compose_once(monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """Restore the handlers of the logger: commands set up logging for their whole process."""
    logger = logging.getLogger("unimem")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before
