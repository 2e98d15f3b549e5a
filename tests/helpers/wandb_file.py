"""Read what W&B writes offline, and hide the account of this machine."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2


def no_account(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let W&B find no key, no settings and no home but an empty one."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home / name))


def records(path: Path) -> Iterator[Any]:
    """Read the records of a .wandb file: a 7-byte header, then LevelDB's log framing."""
    wandb.teardown()  # its service writes on after a run has ended
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        place += 7
        part += data[place : place + size]
        place += size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record
