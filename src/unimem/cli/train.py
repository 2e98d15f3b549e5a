"""unimem-train: train a model with memory, and read held-out documents with it."""

import logging
import sys
import warnings

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unimem.cli import Shown, say
from unimem.cli.command import launch
from unimem.config import ConfigError, validate
from unimem.runs.continued import FinishedRunError
from unimem.training.early import require_startable
from unimem.words import system_error


def main() -> None:
    """Run `unimem-train` with the arguments of the command line."""
    launch(run, "train")


def run(node: DictConfig) -> None:
    """Check the settings, train, and print what was found; tell a mistake without a traceback."""
    config = validate(node)
    require_startable(config)
    # torch and lightning take seconds; a wrong setting must not.
    from lightning.pytorch.utilities import rank_zero_only

    from unimem.cli.train_on import train_on
    from unimem.results.frame_tables import short
    from unimem.runs.records import read_result
    from unimem.training.run import train

    set_up_logging()
    try:
        folder = train(config, log=say)
    except FinishedRunError as error:
        given = HydraConfig.get().overrides.task
        raise ConfigError(f"{error}\n{train_on(error.folder, given)}") from None
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(system_error(error)) from error
    if rank_zero_only.rank:
        return
    for use, score in read_result(folder)["evaluation"]["scores"].items():
        say(f"memory {use:<6} perplexity {short(score['perplexity'])}  nll {short(score['nll'])}")
    say(f"results            {folder}")


def set_up_logging() -> None:
    """Send what the package logs to stderr, a line each, and quieten Lightning and transformers.

    To be called after they were imported: importing sets their levels.
    """
    from transformers.utils.logging import disable_progress_bar

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Shown("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("unimem")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
    disable_progress_bar()


if __name__ == "__main__":
    main()
