"""Every preset with budgets for a tiny model of three layers and segments of a few tokens.

`overrides` are for the command line, `budgets` are arguments of the method's reference.
"""

from functools import cache
from typing import Any, NamedTuple

from unimem.config import compose
from unimem.memory.settings import MemorySettings
from unimem.paths import config_root

ALL = (0, 1, 2)


class Small(NamedTuple):
    """A preset made small; `proof` is set only where the reference leaves something out."""

    overrides: tuple[str, ...]
    budgets: dict[str, Any]
    layers: tuple[int, ...]
    proof: tuple[str, ...]


def _small(
    *overrides: str, layers: tuple[int, ...] = ALL, proof: tuple[str, ...] = (), **budgets: Any
) -> Small:
    if layers != ALL:
        overrides += (f"injection.layers={list(layers)}",)
    small, proof = (
        tuple(f"~memory.{o[1:]}" if o.startswith("~") else f"memory.{o}" for o in some)
        for some in (overrides, proof)
    )
    return Small(small, budgets, layers, proof)


SMALL = {
    "autocompressor": _small("num_soft_tokens=3", num_soft_tokens=3),
    "bigbird": _small(
        "window=6", "window_block=3", "num_global=6", "random_size=3", "random_blocks=2",
        "random_seed=5", block=3, random_blocks=2, seed=5,
    ),
    "block_recurrent": _small("num_summary=3", "size=3", layers=(1,), num_summary=3),
    "ccm": _small("num_summary=2", num_summary=2),
    "compressive_transformer": _small(
        "size=7", "compressed_size=4", "rate=3", size=7, compressed_size=4, rate=3, pool="mean"
    ),
    "em_llm": _small(
        "window=9", "num_global=2", "topk_blocks=1", "representatives=2", "surprise_window=6",
        "surprise_gamma=0.7", "limit=9", num_global=2, window=9, topk=1, num_representatives=2,
        neighbours=1, surprise_window=6, gamma=0.7,
    ),
    "extended_mind": _small("topk=4", topk=4, threshold=0.25),
    "focused_transformer": _small(layers=(0, 2), crossbatch=0),
    "full_context": _small(),
    "gist": _small("num_summary=3", "size=3", num_summary=3),
    "h2o": _small("size=7", "recent=3", size=7, recent=3),
    "infini_attention": _small(delta=True),
    "infllm": _small(
        "window=9", "num_global=2", "block_size=3", "topk_blocks=2", "representatives=2", "limit=9",
        num_global=2, window=9, block=3, topk=2, num_representatives=2,
    ),
    "landmark": _small(
        "block_size=3", "topk_blocks=2", "size=200", "injection=layers", layers=(1, 2), block=3,
        topk=2,
    ),
    "lm_infinite": _small(
        "num_pinned=3", "num_global=3", "window=8", "size=8", "limit=9", num_global=3, window=9
    ),
    "longformer": _small("size=16", "window=8", "num_global=2"),
    "longmem": _small("block_size=4", "topk_blocks=2", layers=(1,), block=4, topk=2),
    "longnet": _small(
        "dilated_spans=[6,11,25]", "dilated_rates=[1,2,3]", "size=25",
        pairs=[(6, 1), (11, 2), (25, 3)],
    ),
    "longt5_global": _small("size=6", "rate=4", size=6, rate=4),
    "memorizing_transformer": _small("topk=4", "size=18", layers=(0, 2), topk=4, size=18),
    "rmt": _small("num_soft_tokens=3", num_soft_tokens=3),
    "sparse_transformer": _small("window=4", "period=5", period=5),
    "sparse_transformer_fixed": _small(
        "window_block=5", "period=5", "columns=2", period=5, columns=2
    ),
    "streaming_llm": _small(
        "num_pinned=3", "num_global=3", "window=8", "size=8", num_pinned=3, window=9
    ),
    "tova": _small("size=7", size=7),
    "transformer_xl": _small("size=8", "window=8", size=8, window=8),
    "unimix": _small(
        "topk=2", "window=6", "num_global=2", "num_soft_tokens=3", "size=20",
        layers=(1, 2), topk=2, window=6, num_global=2, size=20,
        proof=(
            "writing=direct", "injection=layers", "grad_global=true", "grad_topk=true",
            "~num_soft_tokens",
        ),
    ),
    "unlimiformer": _small("topk=5", layers=(1, 2), topk=5),
    "vanilla": _small(layers=ALL),
}  # fmt: skip

METHODS = sorted(f.stem for f in (config_root() / "conf" / "method").glob("*.yaml"))
METHODS.remove("custom")


@cache
def small_memory(method: str, segment_length: int = 8, *more: str) -> MemorySettings:
    """The memory of a preset, as composed from its file, with small budgets."""
    overrides = [*SMALL[method].overrides, f"memory.segment_length={segment_length}", *more]
    return compose(f"method={method}", "model=tiny", "model.num_layers=3", *overrides).memory
