"""PyTorch's own flash attention on the CPU, which knows its log-sum-exp."""

import torch
from torch import Tensor

from unimem.model.kernels.base import Kernel


class CpuFlash(Kernel):
    """Blocks of logits that stay in the cache. Grouped heads are read where they are."""

    name = "sdpa"
    bands = False

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, band: int | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel.forward`; it gets no band."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=1.0
        )
        if bias is not None:
            # where all is hidden it says 0, which another part would take for a weight of 1
            lse = lse.masked_fill((bias == -torch.inf).all(-1), -torch.inf)
        return out, lse

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
        """See `Kernel.backward`; it gets no band."""
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, False, attn_mask=bias, scale=1.0
        )
