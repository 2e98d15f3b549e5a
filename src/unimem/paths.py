"""Where the configuration lies: beside the package in a checkout, inside it in a wheel."""

import os
from pathlib import Path

CONFIG_DIR = "UNIMEM_CONFIG_DIR"
"""The variable that names a folder of one's own: `--config-dir`, for child processes too."""


def config_root() -> Path:
    """Return the folder that holds `conf/` and `sweeps/`."""
    here = Path(__file__).resolve().parent
    for root in (here, here.parents[1]):
        if (root / "conf" / "train.yaml").is_file() and (root / "sweeps").is_dir():
            return root
    raise FileNotFoundError("conf/ and sweeps/ are missing from this installation of unimem")


def own_config() -> Path | None:
    """Return the user's folder of options, laid out as `conf/`, with a .py beside each .yaml."""
    given = os.environ.get(CONFIG_DIR)
    return Path(given).resolve() if given else None
