"""Means over tokens with intervals over documents.

Tokens of one document rise and fall together, so documents are what is drawn anew in every
resample (Miller 2024, arXiv 2411.00640); an interval over tokens would be far too narrow. Every
mean is the ratio of two sums over documents, of the losses and of the tokens.

Shapes: N tokens of all documents together, D documents, R resamples, K seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
POWER = 2.8
"""Standard errors between no effect and the smallest that a two-sided test at 5 % sees in 80 % of
cases: 1.96 + 0.84."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean in nats per token with its 95 % interval (NaN for a single document)."""

    mean: float
    low: float
    high: float
    documents: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """The paired difference of two readings of the same tokens; negative if the first is better.

    better: documents on which the first has the lower loss. smallest_effect: the smallest
    difference in nats that this many documents show with 80 % power.
    """

    better: int
    smallest_effect: float

    @property
    def perplexity_ratio(self) -> tuple[float, float, float]:
        """The ratio of the perplexities, and its interval."""
        ratio, low, high = np.exp([self.mean, self.low, self.high]).tolist()
        return ratio, low, high


def mean_nll(nll: np.ndarray, document: np.ndarray, seed: int = 0) -> Estimate:
    """Estimate the mean of `nll` [N] over tokens; `document` [N] says whose token each is."""
    totals, counts = _sums(nll, document)
    return _estimate(totals, counts, _resampled(totals, counts, seed))


def compare(a: np.ndarray, b: np.ndarray, document: np.ndarray, seed: int = 0) -> Difference:
    """Estimate the mean of a - b, both [N] and of the same tokens."""
    totals, counts = _sums(a.astype(np.float64) - b, document)
    resampled = _resampled(totals, counts, seed)
    estimate = _estimate(totals, counts, resampled)
    return Difference(
        **vars(estimate),
        better=int((totals < 0).sum()),
        smallest_effect=POWER * float(resampled.std()) if len(totals) > 1 else np.nan,
    )


def by_position(
    nll: np.ndarray, document: np.ndarray, position: np.ndarray, edges: Sequence[int]
) -> list[Estimate]:
    """Estimate the mean in every bucket edges[i] <= position < edges[i + 1]; none may be empty."""
    bucket = np.digitize(position, edges) - 1
    masks = (bucket == i for i in range(len(edges) - 1))
    return [mean_nll(nll[mask], document[mask]) for mask in masks]


def position_edges(longest: int, segment_length: int) -> list[int]:
    """Give the edges of the buckets: segments if there are at most 16, else their doublings."""
    segments = -(-longest // segment_length)
    if segments <= 16:
        return [segment_length * i for i in range(segments + 1)]
    return [0, *(segment_length << i for i in range((segments - 1).bit_length() + 1))]


def several_seeds(differences: np.ndarray, document: np.ndarray, seed: int = 0) -> Estimate:
    """Estimate a mean over seeds from `differences` [K, N], one row for each seed's model.

    Seeds are drawn, and documents independently of them: all models read the same documents.
    """
    rows = [_sums(row, document) for row in differences]
    totals, counts = np.stack([total for total, _ in rows]), rows[0][1]
    K = len(totals)
    drawn = np.random.default_rng(seed + 1).integers(K, size=(RESAMPLES, K))
    each = np.stack([_resampled(row, counts, seed) for row in totals])
    resampled = each[drawn, np.arange(RESAMPLES)[:, None]].mean(1)
    return _estimate(totals.mean(0), counts, resampled)


def _sums(nll: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum losses and count tokens of every document that has any, float64 and int [D]."""
    _, owner = np.unique(document, return_inverse=True)
    return np.bincount(owner, nll.astype(np.float64)), np.bincount(owner)


def _resampled(totals: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Draw the D documents anew, R times, and give the mean of each draw [R]."""
    D = len(totals)
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    # So many resamples at a time that their indices stay within some megabytes.
    chunk = max(1, 1_000_000 // D)
    for begin in range(0, RESAMPLES, chunk):
        part = means[begin : begin + chunk]
        drawn = generator.integers(D, size=(len(part), D))
        part[:] = totals[drawn].sum(1) / counts[drawn].sum(1)
    return means


def _estimate(totals: np.ndarray, counts: np.ndarray, resampled: np.ndarray) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if len(totals) > 1 else (np.nan, np.nan)
    return Estimate(
        mean=float(totals.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        documents=len(totals),
        tokens=int(counts.sum()),
    )
