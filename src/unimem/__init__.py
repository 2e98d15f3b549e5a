"""UniMem: long-context memory in language models, as four choices.

`compose` reads and validates a configuration, `attach` puts the four dimensions of memory into a
Hugging Face decoder, `read` reads documents with it; `results.frame` returns the runs of a folder
as a pandas DataFrame. The names are resolved on first use, so that `import unimem` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimem import results
    from unimem.config import compose
    from unimem.model.attach import attach
    from unimem.model.segments import read

__version__ = "0.1.0"

__all__ = ["__version__", "attach", "compose", "read", "results"]

_HOME = {
    "attach": "unimem.model.attach",
    "compose": "unimem.config",
    "read": "unimem.model.segments",
}


def __getattr__(name: str) -> Any:
    if name == "results":
        return import_module("unimem.results")
    if name not in _HOME:
        raise AttributeError(f"module 'unimem' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
