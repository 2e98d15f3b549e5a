"""Which kernel computes attention with memory, and why.

`reference` is the defining form (`reference.py`); kernels compute the same without materialising
all logits, and are compared with it on a small example before use.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from unimem.attention.kernels.base import Kernel, materialised
from unimem.attention.merge import Dense, merge_parts
from unimem.memory.plan import MemoryPlan

logger = logging.getLogger(__name__)

ORDER = {"cpu": ("sdpa",), "cuda": ("flash", "sdpa")}
"""What `auto` tries on a device, the fastest first."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""How far a kernel may be from the materialised softmax, relative to the largest number."""


class BackendError(ValueError):
    """An attention backend that was asked for cannot run here."""


def choose(
    backend: str,
    plan: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    *,
    learns: bool = True,
) -> Kernel | None:
    """Return the kernel for the layers that have a fast form; None for the reference.

    `auto` takes the fastest that works, and says once what it took and why. Raises `BackendError`
    if another one is named and cannot run: here, or for what a layer does. A named one need not
    have a backward pass unless the model `learns`.
    """
    if backend == "reference" or not plan.layers:
        return None
    if backend != "auto":
        if refusal := plan.refusal(backend):
            raise BackendError(refusal)
        kernel, missing = _working(backend, device.type, dtype, learns)
        if kernel is None:
            raise BackendError(
                f"attention.backend={backend} {missing}; set attention.backend=auto, or another"
            )
        return kernel
    tried: list[str] = []
    for name in ORDER.get(device.type, ()):
        kernel, missing = _working(name, device.type, dtype, True)
        if kernel is not None:
            slow = (f"by reference: {why}" for why in plan.needs_reference)
            _say(f"{name} ({type(kernel).__name__})", *tried, *slow)
            return kernel
        tried.append(f"{name} {missing}")
    _say("reference", *(tried or [f"there is no kernel for {device.type}"]))
    return None


@cache
def _say(chosen: str, *because: str) -> None:
    """Log a choice once."""
    logger.info("attention.backend=auto: %s", "; ".join((chosen, *because)))


@cache
def _working(name: str, device: str, dtype: torch.dtype, learns: bool) -> tuple[Kernel | None, str]:
    """Make a kernel and let it prove itself; else say what is missing."""
    try:
        kernel = _make(name, device)
    except ImportError as error:
        return None, f"is not installed: {error}"
    except BackendError as error:
        return None, str(error)
    try:
        # whoever asks first may be reading without gradient, or under autocast
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
        ):
            error = _error(kernel, torch.device(device), dtype, learns)
    except (RuntimeError, TypeError, ValueError, AssertionError) as failure:
        return None, f"fails for {dtype} on {device}: {str(failure).splitlines()[0]}"
    if not error < TOLERANCE.get(dtype, 1e-2):
        return None, f"is {error:.1e} away from the reference for {dtype} on {device}"
    return kernel, ""


def _make(name: str, device: str) -> Kernel:
    if name == "flex":
        from unimem.attention.kernels.flex import Flex

        return Flex()
    if name == "sdpa" and device == "cpu":
        from unimem.attention.kernels.cpu import CpuFlash

        return CpuFlash()
    if device != "cuda":
        raise BackendError(f"needs a CUDA GPU, and the model is on {device}")
    if name == "flash":
        from unimem.attention.kernels.flash import Flash

        return Flash()
    from unimem.attention.kernels.efficient import Efficient

    return Efficient()


def _error(kernel: Kernel, device: torch.device, dtype: torch.dtype, learns: bool) -> float:
    """Compare a softmax over two parts with the materialised one, gradients too if it `learns`."""
    generator = torch.Generator().manual_seed(0)

    def random(heads: int, tokens: int) -> Tensor:
        made = torch.randn(2, heads, tokens, 64, generator=generator)
        return (made / 3).to(device, dtype).requires_grad_()

    query, *keys = random(4, 16), random(2, 24), random(2, 24), random(2, 9), random(2, 9)
    hidden = torch.rand(2, 1, 16, 9, generator=generator) > 0.7
    hidden[:, :, :, 0] = False
    bias = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).to(device, dtype)
    band = 8 if kernel.bands else None
    causal = torch.ones(16, 24).tril(8).to(device)
    window = (causal - causal.tril(-1)) if kernel.bands else causal
    mask = torch.zeros(16, 24, device=device).masked_fill(window == 0, -torch.inf)
    near = Dense(query, keys[0], keys[1], None if band else mask.to(dtype)[None, None], band)
    out = merge_parts(kernel, [near, Dense(query, keys[2], keys[3], bias)])
    wide = [x.detach().double().requires_grad_() for x in (query, *keys)]
    both = torch.cat([mask.double().expand(2, 1, 16, 24), bias.double()], -1)
    truth, _ = materialised(
        wide[0], torch.cat([wide[1], wide[3]], 2), torch.cat([wide[2], wide[4]], 2), both
    )
    pairs = [(out, truth)]
    if learns:
        grad = torch.randn(out.shape, generator=generator).to(device, dtype)
        out.backward(grad)
        truth.backward(grad.double())
        pairs += [(x.grad, y.grad) for x, y in zip((query, *keys), wide, strict=True)]
    return max(
        ((found.double() - true).abs().max() / true.abs().max()).item()
        for found, true in pairs
        if found is not None and true is not None
    )
