"""Keys, values and queries to measure with: the same for the same seed, on every device.

How fast a search is depends on what it finds. Keys of trained models are no noise: they lie in
clusters of very different sizes, in few of their dimensions, neighbours in the text are alike, and
the first tokens have large keys that most queries find.

Shapes: B rows, H query heads, G key-value heads, M slots, T queries, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SINKS = 4
"""Tokens at the beginning with large keys."""
SINK_NORM = 4.0
"""Their norm, in norms of other keys."""
STAY = 0.9
"""Chance that a token is of the cluster of the one before."""
SPREAD = 0.3
"""Of keys around their centre, in standard deviations of the centres."""
DRIFT = 64
"""Tokens in which the place of all centres moves on."""


class Drawn(NamedTuple):
    """What one row is measured with."""

    keys: Tensor
    """[G, M, D], un-rotated."""
    queries: Tensor
    """[H, T, D], un-rotated."""
    clusters: Tensor | None = None
    """The centre that each key lies at [G, M], -1 for a sink."""


class Source(Protocol):
    """Where keys come from."""

    def draw(
        self, *, heads: int, kv_heads: int, slots: int, queries: int, size: int, seed: int
    ) -> Drawn:
        """Return keys and queries of one row; a function of its arguments alone."""
        ...


@dataclass(frozen=True)
class Clustered:
    """Keys in clusters, as those of trained models are.

    About sqrt(M) centres for each key-value head; a token stays in the cluster of the one before
    or goes to one of a Zipf distribution; all drift together along the document. Dimension i of
    the centres has a variance in proportion to 1 / (i + 1). The first four keys are sinks. Queries
    lie near the centres of their head's keys, met in the same way.
    """

    def draw(
        self, *, heads: int, kv_heads: int, slots: int, queries: int, size: int, seed: int
    ) -> Drawn:
        """Return keys and queries of one row; a function of its arguments alone."""
        random = Generator().manual_seed(seed)
        scale = 1 / torch.arange(1, size + 1).sqrt()
        scale = scale * math.sqrt(size) / scale.norm()  # a key's squared norm is about its size
        count = max(1, math.isqrt(slots))
        keys, asked, clusters = [], [], []
        for _ in range(kv_heads):
            centres = torch.randn(count, size, generator=random) * scale
            own = _walk(count, slots, random)
            made = centres[own].add_(_noise(slots, scale, random))
            made = made.add_(_drift(slots, scale, random))
            sinks = F.normalize(torch.randn(1, size, generator=random) * scale, dim=1)
            made[:SINKS] = sinks * (SINK_NORM * math.sqrt(size))
            own[:SINKS] = -1
            for _ in range(heads // kv_heads):
                near = centres[_walk(count, queries, random)]
                asked.append(near.add_(_noise(queries, scale, random)))
            keys.append(made)
            clusters.append(own)
        return Drawn(torch.stack(keys), torch.stack(asked), torch.stack(clusters))


@dataclass(frozen=True)
class Gaussian:
    """Keys without any structure."""

    def draw(
        self, *, heads: int, kv_heads: int, slots: int, queries: int, size: int, seed: int
    ) -> Drawn:
        """Return keys and queries of one row; a function of its arguments alone."""
        random = Generator().manual_seed(seed)
        return Drawn(
            torch.randn(kv_heads, slots, size, generator=random),
            torch.randn(heads, queries, size, generator=random),
        )


@dataclass(frozen=True)
class Recorded:
    """Keys and queries that a trained model computed, fitted to other shapes.

    Heads that the model lacks are made of its own by a fixed random projection, which also changes
    the size of a head and leaves dot products as they are on average. More slots than tokens repeat
    the text, with a little noise.

    Args:
        keys: [G', N, D'] of N tokens.
        queries: [H', N, D'] of the same tokens.
        noise: in standard deviations of the keys.
    """

    keys: Tensor
    queries: Tensor
    noise: float = 0.05

    def draw(
        self, *, heads: int, kv_heads: int, slots: int, queries: int, size: int, seed: int
    ) -> Drawn:
        """Return keys and queries of one row; a function of its arguments alone."""
        known, length, _ = self.keys.shape
        group, known_group = heads // kv_heads, len(self.queries) // known
        random = Generator().manual_seed(seed)
        first = int(torch.randint(length, (1,), generator=random))
        places = (first + torch.arange(slots)) % length
        asking = (first + slots + torch.arange(queries)) % length
        keys, asked = [], []
        for g in range(kv_heads):
            fit = self._fit(g, size)
            made = fit(self.keys[g % known])[places]
            noise = torch.randn(made.shape, generator=random) * made.std() * self.noise
            keys.append(made + noise)
            for h in range(group):
                source = (g % known) * known_group + h % known_group
                asked.append(fit(self.queries[source])[asking])
        return Drawn(torch.stack(keys), torch.stack(asked))

    def _fit(self, head: int, size: int) -> Callable[[Tensor], Tensor]:
        """Return the map of a key-value head from the model's head size to another."""
        known, _, given = self.keys.shape
        if size == given and head < known:
            return lambda x: x
        fixed = Generator().manual_seed(head)
        projection = torch.randn(given, size, generator=fixed) / math.sqrt(size)
        return lambda x: x @ projection


def draw_rows(
    source: Source,
    rows: int,
    *,
    heads: int,
    kv_heads: int,
    slots: int,
    queries: int,
    size: int,
    seed: int,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return keys [B, G, M, D] and queries [B, H, T, D] in the type and on the device of `like`.

    Rows differ, and so do seeds.
    """
    drawn = [
        source.draw(
            heads=heads,
            kv_heads=kv_heads,
            slots=slots,
            queries=queries,
            size=size,
            seed=seed * 1009 + row,
        )
        for row in range(rows)
    ]
    keys = torch.stack([row.keys for row in drawn]).to(like)
    return keys, torch.stack([row.queries for row in drawn]).to(like)


def _walk(count: int, length: int, random: Generator) -> Tensor:
    """Return the cluster of each token in order: that of the one before, or one drawn anew."""
    weights = 1 / torch.arange(1, count + 1, dtype=torch.float)
    drawn = weights.multinomial(max(1, length), replacement=True, generator=random)[:length]
    moves = torch.rand(length, generator=random) >= STAY
    last = torch.arange(length).where(moves, 0).cummax(0).values
    return drawn[last]


def _noise(length: int, scale: Tensor, random: Generator) -> Tensor:
    return torch.randn(length, len(scale), generator=random).mul_(scale).mul_(SPREAD)


def _drift(length: int, scale: Tensor, random: Generator) -> Tensor:
    """Return a smooth curve [length, D]."""
    knots = torch.randn(1, len(scale), length // DRIFT + 2, generator=random)
    curve = F.interpolate(knots, size=length, mode="linear", align_corners=True)
    return curve[0].T * scale * SPREAD
