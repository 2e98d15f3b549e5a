"""What happens to files: cut, a bit flipped, a tail of zeros; and runs on text to do it to."""

import random
from collections.abc import Iterator
from pathlib import Path

from training.conftest import TINY, XL, Runs

SHARES = (0.0, 0.01, 0.25, 0.5, 0.99)
"""How much is left of a file that is cut."""


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def zero_tail(data: bytes) -> bytes:
    """Zero the second half, as a power cut leaves a file whose blocks were never written."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def flips(data: bytes, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Give `count` copies with one bit flipped at a random place, and that place in bits."""
    places = random.Random(seed)
    for _ in range(count):
        bit = places.randrange(8 * len(data))
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(copy)


def everything(folder: Path) -> dict[str, bytes | str]:
    """Give the content of all files below a folder; of a lock, that it is there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.name != ".lock" else "lock"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TextRuns(Runs):
    """Runs on ten short texts, with tokenizer and tokens in a cache of their own."""

    def __init__(self, output: Path, texts: Path, cache: Path):
        super().__init__(output)
        self.texts, self.cache = texts, cache

    def overrides(self, *more: str, method=XL) -> list[str]:
        plain = [line for line in TINY if not line.startswith("data")]
        text = ["data=text", f"data.path={self.texts}", f"data.cache={self.cache}"]
        text += ["data.vocab_size=270", "data.held_out=0.4"]
        return [*plain, *text, *method, f"output={self.output}", *more]


def write_texts(folder: Path) -> Path:
    """Write ten short documents."""
    folder.mkdir(parents=True)
    for i in range(10):
        words = " ".join(f"word{(i * j) % 7}" for j in range(1, 40))
        (folder / f"{i}.txt").write_text(f"document {i}: {words}\n")
    return folder
