"""Means over tokens with intervals over documents, and over seeds and documents.

Tokens of one document rise and fall together, so documents are what is drawn anew in every
resample (Miller 2024, arXiv 2411.00640); an interval over tokens would be far too narrow. Every
mean is the ratio of two sums over documents, of the losses and of the tokens.

Seeds are few. Drawing three of them anew gives a variance that is a third too small, and a normal
law where it is itself known from two degrees of freedom only; so their part of an interval is
Student's (`several_seeds`).

Shapes: N tokens of all documents together, D documents, R resamples, S settings, K seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimem.evaluation.student import quantile

RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_DOCUMENTS = 50
"""Documents below which the interval over documents is too narrow.

Of 95 % intervals for the mean of 5, 10, 20, 50 and 100 documents of equal length 84, 91, 93, 94 and
95 % hold the truth; where lengths vary and long documents are harder, 75, 85, 89, 89 and 93 %.
"""
LEAST_P = 1e-9
"""What a smaller p-value is given as: no law here is known so far out."""
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
        ratio, low, high = perplexity([self.mean, self.low, self.high]).tolist()
        return ratio, low, high


def perplexity(nll: Any) -> Any:
    """Return e^nll of a number or an array; infinite above 709 nats, beyond the largest float."""
    with np.errstate(over="ignore"):
        return np.exp(nll)


def few_documents(documents: int) -> str | None:
    """Return a warning if an interval over so few documents is too narrow, else None."""
    if documents >= FEW_DOCUMENTS:
        return None
    return (
        f"With fewer than about {FEW_DOCUMENTS} documents intervals are too narrow: of 95 % "
        "intervals over 5, 10 or 20 documents 84, 91 or 93 % hold the truth, fewer where lengths "
        "vary."
    )


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
    """Return the edges of the buckets: segments if there are at most 16, else their doublings."""
    segments = -(-longest // segment_length)
    if segments <= 16:
        return [segment_length * i for i in range(segments + 1)]
    return [0, *(segment_length << i for i in range((segments - 1).bit_length() + 1))]


@dataclass(frozen=True, kw_only=True)
class SeedEstimate(Estimate):
    """A number that the models of several seeds give, with its 95 % interval over both.

    of_documents: the interval over documents alone, of these seeds' models. seed_error: the
    standard error over seeds; 0 for one seed, whose interval says nothing of other seeds.
    """

    seeds: int
    of_documents: tuple[float, float]
    seed_error: float

    @property
    def p(self) -> float:
        """The two-sided p-value of the number being 0: 1 less the confidence that just spans it.

        At least `LEAST_P`; 1 for a single document. Of one seed it is over documents alone.
        """
        if math.isnan(self.low):
            return 1.0
        # The side of the documents' interval that 0 lies on.
        side = abs(self.mean - self.of_documents[0 if self.mean > 0 else 1])
        low, high = math.log(LEAST_P), 0.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            if self._half_width(side, math.exp(middle)) < abs(self.mean):
                high = middle
            else:
                low = middle
        return math.exp(high)

    def _half_width(self, side: float, alpha: float) -> float:
        """Return one side of the interval at confidence 1 - alpha."""
        return _half_width(side, self.seed_error, self.documents, self.seeds, alpha)


def several_seeds(differences: np.ndarray, document: np.ndarray, seed: int = 0) -> SeedEstimate:
    """Estimate a mean over seeds from `differences` [K, N], one row for each seed's model.

    All models read the same documents, so seeds and documents are crossed: the mean differs from
    the truth by an error of the seeds, whose share is known with K - 1 degrees of freedom, and one
    of the documents. An interval for each, Student's t over the K means of seeds and the bootstrap
    over documents of the mean model, are combined by the root of the sum of their squared half
    widths (the method of variance estimates recovery: Howe 1974, J. R. Statist. Soc. B 36, 205;
    Zou and Donner 2008, Statistics in Medicine 27, 1693), each side by itself. With three seeds it
    covers 95 to 98 % whichever error is the larger. A two-level bootstrap covers 76 to 95 %, and
    one t with Satterthwaite's degrees of freedom makes false claims among many comparisons, because
    these degrees are estimated too. Of one seed it is the interval over documents, and says nothing
    of other seeds.
    """
    return of_several(differences[None], document, lambda means: means[0], seed)


def of_several(
    losses: np.ndarray,
    document: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> SeedEstimate:
    """Estimate what `function` makes of the mean losses of S settings, `losses` [S, K, N].

    function: takes means [S, n] and gives n numbers. Settings are paired by seeds and documents.
    The interval is that of `several_seeds`; the seeds' part is over the pseudo-values of the
    jackknife (Tukey 1958), which for a difference of means are the differences themselves.
    """
    S, K, _ = losses.shape
    sums = [[_sums(row, document) for row in rows] for rows in losses]
    counts = sums[0][0][1]
    totals = np.array([[total for total, _ in rows] for rows in sums])  # [S, K, D]
    each = totals.sum(2) / counts.sum()  # [S, K]
    mean = each.mean(1, keepdims=True)
    value = float(function(mean)[0])
    seed_error = 0.0
    if K > 1:
        without = function((K * mean - each) / (K - 1))
        seed_error = float((K * value - (K - 1) * without).std(ddof=1)) / math.sqrt(K)
    documents = np.stack([_resampled(total, counts, seed) for total in totals.mean(1)])
    D = len(counts)
    low, high = _interval(function(documents)) if D > 1 else (math.nan, math.nan)
    alpha = 1 - CONFIDENCE
    return SeedEstimate(
        mean=value,
        low=value - _half_width(value - low, seed_error, D, K, alpha),
        high=value + _half_width(high - value, seed_error, D, K, alpha),
        documents=D,
        tokens=int(counts.sum()),
        seeds=K,
        of_documents=(low, high),
        seed_error=seed_error,
    )


def _half_width(side: float, seed_error: float, documents: int, seeds: int, alpha: float) -> float:
    """Combine one side of the documents' interval, at `CONFIDENCE`, with the seeds' error."""
    if documents == 1:
        return math.nan
    if alpha != 1 - CONFIDENCE:
        freedom = documents - 1
        side *= quantile(alpha, freedom) / quantile(1 - CONFIDENCE, freedom)
    if not seed_error:
        return side
    return math.hypot(side, quantile(alpha, seeds - 1) * seed_error)


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
    low, high = _interval(resampled) if len(totals) > 1 else (math.nan, math.nan)
    return Estimate(
        mean=float(totals.sum() / counts.sum()),
        low=low,
        high=high,
        documents=len(totals),
        tokens=int(counts.sum()),
    )


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of what was made of every resample [R]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)
