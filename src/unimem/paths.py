"""Where the configuration lies: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path


def config_root() -> Path:
    """Give the folder that holds `conf/` and `sweeps/`."""
    here = Path(__file__).resolve().parent
    for root in (here, here.parents[1]):
        if (root / "conf" / "train.yaml").is_file() and (root / "sweeps").is_dir():
            return root
    raise FileNotFoundError("conf/ and sweeps/ are missing from this installation of unimem")
