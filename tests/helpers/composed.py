"""Compose a configuration once: Hydra takes 0.1 s for it, more than most tests do beside it."""

import copy
from typing import Any

import pytest
from hydra import compose
from omegaconf import DictConfig

from unimem.config import composition
from unimem.paths import config_root


def compose_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `unimem.config` return copies of what it composed before from the same overrides.

    Configurations of a folder of one's own are composed anew, since tests change its files.
    """
    composed: dict[tuple[Any, ...], DictConfig] = {}

    def compose_or_copy(config_name: str, overrides: list[str]) -> DictConfig:
        if any(line.startswith("hydra.searchpath") for line in overrides):
            return compose(config_name, overrides)
        key = config_root(), config_name, *overrides
        if key not in composed:
            composed[key] = compose(config_name, overrides)
        return copy.deepcopy(composed[key])

    monkeypatch.setattr(composition, "hydra_compose", compose_or_copy)
