from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from unimem.data.settings import DataSettings

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DataSettings]:
    """The yaml file of a kind, with some values replaced."""

    def load(kind: str, **values: Any) -> DataSettings:
        written: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{kind}.yaml"), resolve=True)
        written.pop("segment_length", None)  # a default of the memory's, taken in composing
        if "tokenizer" in written:
            written["tokenizer"] = "bpe"  # null follows the model, in composing
        if "cache" in written:
            written["cache"] = str(tmp_path / "cache")
        assert values.keys() <= written.keys()
        return TypeAdapter(DataSettings).validate_python(written | values)

    return load
