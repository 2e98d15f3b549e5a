"""What a two-level bootstrap says of numbers that several settings make together.

Shapes: S settings, K seeds, N tokens of all documents together, D documents, R resamples.
"""

import numpy as np

from unimem.evaluation.statistics import CONFIDENCE, RESAMPLES


def resample(losses: np.ndarray, document: np.ndarray, seed: int = 0) -> np.ndarray:
    """Give the mean of `losses` [S, K, N] for each setting in every resample [S, R].

    The resamples are those of `several_seeds`: seeds and documents are drawn anew, and all settings
    get the same ones, so that what is made of their means is paired.
    """
    _, owner = np.unique(document, return_inverse=True)
    counts = np.bincount(owner)
    S, K, N = losses.shape
    D = len(counts)
    rows = losses.reshape(S * K, N).astype(np.float64)
    totals = np.stack([np.bincount(owner, row) for row in rows])
    generator = np.random.default_rng(seed)
    means = np.empty((S * K, RESAMPLES))
    # So many resamples at a time that their indices stay within some megabytes.
    chunk = max(1, 1_000_000 // D)
    for begin in range(0, RESAMPLES, chunk):
        part = means[:, begin : begin + chunk]
        drawn = generator.integers(D, size=(part.shape[1], D))
        place = drawn + D * np.arange(len(drawn))[:, None]
        times = np.bincount(place.ravel(), minlength=D * len(drawn)).reshape(-1, D)
        part[:] = totals @ times.T / (times @ counts)
    seeds = np.random.default_rng(seed + 1).integers(K, size=(RESAMPLES, K))
    each = means.reshape(S, K, RESAMPLES)[:, seeds, np.arange(RESAMPLES)[:, None]]
    return each.mean(-1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Give the 95 % interval of what was made of every resample [R]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
