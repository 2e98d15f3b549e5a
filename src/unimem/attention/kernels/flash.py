"""FlashAttention: half precision on CUDA, with bands.

Shapes: B rows, H query heads, G key-value heads, T queries, N keys, D head size.
"""

from importlib import import_module
from typing import final

import torch
from torch import Tensor

from unimem.attention.kernels.efficient import Efficient
from unimem.attention.kernels.flash_builds import Build, available

LARGEST_HEAD = 256


@final
class Flash:
    """FlashAttention, by the newest build that is installed; no build takes a bias.

    Parts with a bias are computed by memory-efficient attention.
    """

    name = "flash"
    bands = True

    def __init__(self, build: Build | None = None):
        self.build = available()[0] if build is None else build
        self.module = import_module(self.build.module)
        self.biased = Efficient()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, band: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output [B, H, T, D] and the log-sum-exp [B, H, T], float32.

        Without a bias it raises TypeError unless in half precision, and ValueError for a head size
        that no build knows.
        """
        if bias is not None:
            return self.biased.forward(query, key, value, bias, band)
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise TypeError(f"FlashAttention takes float16 and bfloat16, not {query.dtype}")
        size = query.shape[-1]
        if size > LARGEST_HEAD or size % 8:
            raise ValueError(
                f"FlashAttention takes head sizes that are multiples of 8 up to {LARGEST_HEAD}, "
                f"but the model's is {size}; choose another kernel"
            )
        qkv = (_tokens_first(t) for t in (query, key, value))
        out, lse = self.build.forward(self.module, *qkv, **_window(band))
        # some builds say inf where nothing is seen
        return out.transpose(1, 2), lse.masked_fill(lse == torch.inf, -torch.inf)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        band: int | None,
        out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value under the joint `out` and `lse`."""
        if bias is not None:
            return self.biased.backward(grad, query, key, value, bias, band, out, lse)
        saved = (_tokens_first(t) for t in (grad, query, key, value, out))
        # the operators take the log-sum-exp for contiguous without a look at its strides
        grads = self.build.backward(self.module, *saved, lse.contiguous(), **_window(band))
        dquery, dkey, dvalue = (t.transpose(1, 2) for t in grads)
        return dquery, dkey, dvalue


def _tokens_first(tensor: Tensor) -> Tensor:
    """Return [B, H, T, D] as [B, T, H, D], with strides that every build reads."""
    tensor = tensor.transpose(1, 2)
    expanded = tensor.stride(-1) != 1 or 0 in tensor.stride()
    return tensor.contiguous() if expanded else tensor


def _window(band: int | None) -> dict[str, int]:
    """Return a causal band as keyword arguments of the kernel."""
    return {} if band is None else {"window_size_left": band, "window_size_right": 0}
