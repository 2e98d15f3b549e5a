import logging
import os

# Nothing may look for the network; the libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch
from hypothesis import settings

# The same examples each time: a test that fails by chance tells nobody what changed.
settings.register_profile("repeated", derandomize=True)
settings.load_profile("repeated")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """Commands set up logging for their process; tests share one."""
    logger = logging.getLogger("unimem")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before
