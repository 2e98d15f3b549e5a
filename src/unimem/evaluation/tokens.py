"""The losses of every scored token, side by side, and the file that keeps them."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from unimem.integrity import require_whole
from unimem.words import writing

FILE_NAME = "documents.npz"


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """N scored tokens of D documents in order.

    names: of the documents [D]. document: whose token each is [N]. position: the place in the
    document that predicts it [N], so that positions below the segment length have no memory.
    columns: losses in nats, float32 [N]: `own`, `off` and `other` are the model's with that
    memory, `bound_none`, `bound_memory` and `bound_unlimited` the best possible ones.
    """

    names: np.ndarray
    document: np.ndarray
    position: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, names: list[str], columns: dict[str, list[np.ndarray]]) -> "TokenTable":
        """Put the losses of documents, `[n - 1]` each, behind one another."""
        lengths = [len(nll) for nll in columns["own"]]
        return cls(
            names=np.array(names),
            document=np.repeat(np.arange(len(lengths)), lengths),
            position=np.concatenate([np.arange(length) for length in lengths]),
            columns={name: np.concatenate(nll).astype(np.float32) for name, nll in columns.items()},
        )

    def between(self, low: int, high: int) -> "TokenTable":
        """Keep the tokens that are predicted at low <= position < high."""
        kept = (low <= self.position) & (self.position < high)
        columns = {name: nll[kept] for name, nll in self.columns.items()}
        return TokenTable(
            names=self.names,
            document=self.document[kept],
            position=self.position[kept],
            columns=columns,
        )

    def save(self, folder: Path) -> None:
        """Write `documents.npz`."""
        arrays: dict[str, Any] = {
            "names": self.names,
            "document": self.document.astype(np.int32),
            "position": self.position.astype(np.int32),
            **self.columns,
        }
        with writing(folder / FILE_NAME), (folder / FILE_NAME).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, folder: Path) -> "TokenTable":
        """Read what `save` wrote. Raises ValueError, which names the file, if it is damaged."""
        path = folder / FILE_NAME
        require_whole(path)
        try:
            with np.load(path) as file:
                columns = dict(file)
            return cls(
                names=columns.pop("names"),
                document=columns.pop("document"),
                position=columns.pop("position"),
                columns=columns,
            )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged or missing: {error}") from None
