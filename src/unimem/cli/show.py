"""unimem-show: draw which tokens of a document each token sees, with a memory made small."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unimem.cli import leave, say
from unimem.cli.command import take_config_dir
from unimem.config import Config, ConfigError, compose, parse_overrides
from unimem.runs.folder import as_file_name

if TYPE_CHECKING:
    import numpy as np

SEGMENT = 8
"""Tokens of a segment in the picture."""
SEGMENTS = 8
KINDS = {0: " ", 1: "░", 2: "█"}
"""What a query sees of a key, on a terminal: nothing, in its own segment, in memory."""
COLOURS = ("#FFFFFF", "#56B4E9", "#D55E00")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unimem-show` with the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="unimem-show",
        description=__doc__,
        epilog="Example: unimem-show method=longformer memory.window=12",
    )
    parser.add_argument("overrides", nargs="*", help="as of unimem-train: method=NAME memory.X=...")
    parser.add_argument("--layer", type=int, help="a layer with memory; the first one by default")
    parser.add_argument("--config-dir", metavar="FOLDER", help="folder of options of your own")
    parser.add_argument("--out", default="outputs/show", help="folder of the picture")
    if arguments is None:
        take_config_dir()
    given = parser.parse_args(arguments)
    try:
        config = small_config(given.overrides)
        seen, layer = who_sees_whom(config, given.layer)
        say(as_text(seen))
        say(f"{_title(config, layer)}\npicture: {draw(config, layer, seen, Path(given.out))}")
    except (ValueError, OSError) as error:
        leave(error)


def small_config(overrides: Sequence[str]) -> Config:
    """Compose a configuration with segments of 8 tokens and budgets scaled down to them.

    Budgets of 8 and more are scaled by 8 / memory.segment_length; those that are given stay.

    Raises:
        ConfigError: the overrides are wrong, or do not fit the small segments.
    """
    own = ("model=nano", "data=stdlib", "logger=none")
    given = {override.key_or_group for override in parse_overrides(overrides)}
    memory = compose(*own, *overrides).memory
    lines = [] if "memory.segment_length" in given else [f"memory.segment_length={SEGMENT}"]
    scale = SEGMENT / memory.segment_length if lines else 1
    for key, value in memory.flat().items():
        numbers = value if isinstance(value, list) else [value]
        if key in given or key in ("memory.layers", "memory.segment_length"):
            continue
        if all(type(x) is int for x in numbers) and max(numbers, default=0) >= SEGMENT:
            small = [max(1, round(x * scale)) for x in numbers]
            lines.append(f"{key}={small if isinstance(value, list) else small[0]}")
    try:
        return compose(*own, *overrides, *lines)
    except ConfigError as error:
        raise ConfigError(f"{error}\nwith {' '.join(lines)}; give other budgets") from None


def who_sees_whom(config: Config, layer: int | None = None) -> "tuple[np.ndarray, int | None]":
    """Return for each query and key of a document of 64 tokens [N, N]: 0, 1 own segment, 2 memory.

    A slot that stands for several tokens is drawn at the position it has. Where content decides,
    the weights are random. Returns the layer too, None if no layer has memory.

    Raises:
        ValueError: `layer` has no memory.
    """
    import torch

    from unimem.memory.bank import MemoryBank
    from unimem.memory.state import FREE, Memory
    from unimem.memory.tensors import repeat_kv
    from unimem.model.attach import attach, attached
    from unimem.model.load import load_model
    from unimem.model.segments import run

    model = attach(load_model(config.model, 64, config.seed), config.memory).eval()
    plans = attached(model).plan.layers
    if layer is not None and layer not in plans:
        raise ValueError(f"--layer {layer} has no memory; layers with memory: {[*plans]}")
    chosen = next(iter(plans), None) if layer is None else layer
    length = config.memory.segment_length
    pairs: list[torch.Tensor] = []

    def observer(
        layer: int, attention_weights: torch.Tensor, queries: torch.Tensor, memory: Memory
    ) -> None:
        if layer != chosen:
            return
        weights = attention_weights[0]
        where = repeat_kv(memory.places, len(weights))[0, :, None].expand(weights.shape)
        read = (weights > 0) & (where != FREE)
        rows = queries[0][None, :, None].expand(read.shape)
        pairs.append(torch.stack([rows[read], where[read]], 1))

    generator = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(0, 64, (2, SEGMENTS, length), generator=generator)
    starts = torch.zeros(2, SEGMENTS, dtype=torch.bool)
    lengths = torch.full((2, SEGMENTS), length)
    with torch.no_grad():
        bank = run(
            model, MemoryBank.empty(2), ids, starts=starts, lengths=lengths, observer=observer
        ).bank
    size = int(bank.position[0])
    seen = torch.zeros(size, size, dtype=torch.uint8)
    place = torch.arange(size)
    whole = size // SEGMENTS
    own = (place[:, None] // whole == place // whole) & (place[:, None] >= place)
    plan = None if chosen is None else plans[chosen]
    if plan is not None and plan.local == "reading":
        places = place[None, None]
        links = plan.reading.links(places[..., None], places[..., None, :], 1, plan.layer)
        own &= (links[0].amax(0) > 0) | torch.eye(size, dtype=torch.bool)
    seen[own] = 1
    for found in pairs:
        rows, columns = found.clamp_min(0).unbind(1)
        seen[rows, columns] = 2
    return seen.numpy(), chosen


def as_text(seen: "np.ndarray") -> str:
    """Return the matrix as lines of text, a query a line."""
    return "\n".join("".join(KINDS[int(kind)] for kind in row).rstrip() for row in seen)


def draw(config: Config, layer: int | None, seen: "np.ndarray", folder: Path) -> Path:
    """Draw the matrix to a PNG in `folder`, and return its path. Raises OSError."""
    from matplotlib.colors import ListedColormap

    from unimem.results.canvas import new_figure, save

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{as_file_name(config.method.name)}.png"
    figure, axes = new_figure((5, 5))
    axes.imshow(seen, cmap=ListedColormap(COLOURS), vmin=0, vmax=2, interpolation="nearest")
    axes.set_xlabel("key (blue: own segment, red: memory)")
    axes.set_ylabel("query")
    axes.set_title(_title(config, layer), fontsize=8)
    save(figure, path)
    return path


def _title(config: Config, layer: int | None) -> str:
    memory = config.memory
    where = "no layer has memory" if layer is None else f"layer {layer}"
    budgets = ", ".join(
        f"{key.removeprefix('memory.')} {value}"
        for key, value in memory.flat().items()
        if type(value) is int and key != "memory.bptt_segments"
    )
    plans = memory.plan(config.num_layers()).layers.values()
    by_content = any(part.searches for plan in plans for part in plan.reading.parts)
    weights = "; random weights" if by_content else ""
    return f"{config.method.name}, {where}{weights}\n{budgets}"


if __name__ == "__main__":
    main()
