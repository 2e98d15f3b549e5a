"""Where the configuration lies: beside the package in a checkout, inside it in a wheel."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

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


def group_files(group: str) -> list[Path]:
    """Return the yaml files of a group's options, those of the user's own folder too."""
    roots = [config_root() / "conf", *filter(None, [own_config()])]
    return sorted(
        {file.stem: file for root in roots for file in (root / group).glob("*.yaml")}.values(),
        key=lambda file: file.stem,
    )


def own_module(folder: str, name: str) -> ModuleType | None:
    """Load `folder`/`name`.py of the user's own folder, once; None if it is not there."""
    own = own_config()
    file = None if own is None else own / folder / f"{name}.py"
    if file is None or not file.is_file():
        return None
    loaded = f"{own}:{folder}.{name}"
    if loaded not in sys.modules:
        spec = spec_from_file_location(loaded, file)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[loaded] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[loaded]
            raise
    return sys.modules[loaded]
