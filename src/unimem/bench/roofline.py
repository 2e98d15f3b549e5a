"""What a GPU could do at best, and how far search is from it."""

from dataclasses import dataclass
from typing import Any

import torch

from unimem.bench.inputs import Clustered, draw_rows
from unimem.bench.retrieval import measure_search
from unimem.bench.settings import BenchSettings
from unimem.bench.shapes import Shape
from unimem.bench.timer import Clock

HALF = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a device can do at best.

    Args:
        flops: in a second, dense, in bfloat16.
        bandwidth: of its memory, in bytes a second.
    """

    flops: float
    bandwidth: float


PEAKS = {
    "H100": Peak(flops=989e12, bandwidth=3.35e12),
    "H200": Peak(flops=989e12, bandwidth=4.8e12),
    "A100": Peak(flops=312e12, bandwidth=2.0e12),
}
"""By a part of the device's name."""


def peak_of(name: str) -> Peak | None:
    """Return what a device can do at best; None for one that is not known here."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def device_peak(device: torch.device) -> Peak | None:
    """Return what this device can do at best; None if that is not known here."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def measure_retrieval(
    settings: BenchSettings, shape: Shape, slots: int, device: torch.device
) -> list[dict[str, Any]]:
    """Measure search in bfloat16 for 32 and 4 slots, against the least possible time.

    The floors are reading queries and keys and writing what is found once, at the bandwidth of the
    device, and the FLOPs of all dot products at its peak; None for a device that is not known here.
    """
    model, peak = shape.model(), device_peak(device)
    size = model.hidden_size // model.num_heads
    keys, queries = draw_rows(
        Clustered(),
        settings.batch_size,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        slots=slots,
        queries=settings.segment_length,
        size=size,
        seed=settings.seed,
        like=torch.empty(0, dtype=HALF, device=device),
    )
    flops = 2 * queries.numel() * slots
    rows: list[dict[str, Any]] = []
    for k in (32, 4):
        clock = Clock(device=device, threads=settings.threads)
        found = measure_search(queries, keys, k, settings.repeats, clock)
        moved = (queries.numel() + keys.numel()) * HALF.itemsize + found["queries"] * k * (8 + 4)
        floors = None if peak is None else (moved / peak.bandwidth, flops / peak.flops)
        rows.append(
            {
                "slots": slots,
                "k": k,
                "search ms": found["search_ms"],
                "product ms": found["product_ms"],
                "product + topk ms": found["topk_ms"],
                "floor of bytes ms": None if floors is None else floors[0] * 1e3,
                "floor of FLOPs ms": None if floors is None else floors[1] * 1e3,
                "search / floor": None
                if floors is None
                else found["search_ms"] / (max(floors) * 1e3),
            }
        )
    return rows
