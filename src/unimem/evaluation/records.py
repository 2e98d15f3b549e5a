"""What is found, as plain values for JSON: six significant digits, None for the unknown."""

import math
from typing import Any

import numpy as np

from unimem.evaluation.score import Scores
from unimem.evaluation.statistics import (
    Difference,
    Estimate,
    by_position,
    mean_nll,
    perplexity,
    position_edges,
)
from unimem.evaluation.tokens import TokenTable


def positions_record(table: TokenTable, segment_length: int) -> dict[str, Any]:
    """Return the mean loss in buckets of the position, and the paired gain of memory."""
    edges = position_edges(int(table.position.max()) + 1, segment_length)
    columns = dict(table.columns)
    if "off" in columns:
        columns["own-off"] = columns["own"] - columns["off"]
    curves = {
        name: by_position(nll, table.document, table.position, edges)
        for name, nll in columns.items()
    }
    return {
        "edges": edges,
        "documents": [estimate.documents for estimate in curves["own"]],
        **{
            name: {key: [_round(getattr(e, key)) for e in curve] for key in ("mean", "low", "high")}
            for name, curve in curves.items()
        },
    }


def score_record(
    nll: np.ndarray, document: np.ndarray, read: Scores, bytes_read: int | None
) -> dict[str, Any]:
    """Describe one reading; perplexity is that of the mean loss, None above 709 nats."""
    estimate = mean_nll(nll, document)
    bits = nll.sum(dtype=np.float64) / math.log(2)
    return estimate_record(estimate) | {
        "perplexity": _round(perplexity(estimate.mean)),
        "bits_per_byte": None if bytes_read is None else _round(float(bits) / bytes_read),
        "seconds": _round(read.seconds),
        "tokens_per_second": _round(read.tokens_per_second),
    }


def estimate_record(estimate: Estimate) -> dict[str, Any]:
    """Describe a mean loss."""
    return {"nll": _round(estimate.mean), "interval": [_round(estimate.low), _round(estimate.high)]}


def difference_record(difference: Difference) -> dict[str, Any]:
    """Describe the paired difference of two readings."""
    ratio, low, high = difference.perplexity_ratio
    return {
        "difference": _round(difference.mean),
        "interval": [_round(difference.low), _round(difference.high)],
        "perplexity_ratio": _round(ratio),
        "perplexity_ratio_interval": [_round(low), _round(high)],
        "better": difference.better,
        "documents": difference.documents,
        "smallest_effect": _round(difference.smallest_effect),
    }


def _round(value: float) -> float | None:
    """Keep six significant digits; JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
