"""The LightningModule: loss, optimizer, clipping. What memory does is not known here."""

from typing import Any, NoReturn, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from unimem.data.stream import NO_TARGET, SegmentBatch
from unimem.memory.bank import MemoryBank
from unimem.model.attach import checkpoint_activations
from unimem.model.segments import segment_nll
from unimem.settings import TrainerSettings
from unimem.training.schedule import learning_rate_factor

FSDP_PREFIX = "_fsdp_wrapped_module."
"""What FSDP puts into the names of the weights that it shards."""


class NonFiniteLossError(ValueError):
    """The loss is NaN or infinite; nothing was updated with it."""


class LitUniMem(LightningModule):
    """Hosts a model with memory attached, and the bank that its rows carry from step to step.

    `bank` is the memory after the last segment, detached; None before the first. `gradient_norm`
    (before clipping) and `last_learning_rate` are of the last optimizer step.
    """

    def __init__(self, model: PreTrainedModel, settings: TrainerSettings):
        super().__init__()
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        if settings.compile:
            # In place: no weight changes its name.
            cast(nn.Module, model.base_model).compile()
        self.model = model
        self.settings = settings
        # Before anything is wrapped: FSDP flattens all weights to vectors.
        self._spared = frozenset(
            name
            for name, weight in model.named_parameters()
            if weight.ndim < 2 or name.startswith("memory.")
        )
        self.bank: MemoryBank | None = None
        self.gradient_norm = 0.0
        self.last_learning_rate = 0.0
        self._documents = torch.empty(0)

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> dict[str, Tensor]:
        """Read the segments of a batch; return `loss`, `nll` (sum, in nats) and `tokens`.

        The loss is nats per token plus the auxiliary losses of memory options.

        Raises `NonFiniteLossError`.
        """
        self._documents = batch.documents.unique()
        bank = self.bank
        if bank is None:
            bank = MemoryBank.empty(len(batch.input_ids), self.device)
        each, bank, losses = segment_nll(
            self.model,
            bank,
            batch.input_ids,
            batch.targets,
            starts=batch.starts,
            lengths=batch.lengths,
        )
        nll = each.sum()
        tokens = (batch.targets != NO_TARGET).sum()
        if not bool(nll.isfinite()):
            self._stop(f"the loss is {nll.item()}")
        self.bank = bank.detach()
        loss = nll / tokens.clamp_min(1)
        if losses:
            loss = loss + torch.stack(losses).mean()
        return {"loss": loss, "nll": nll.detach(), "tokens": tokens}

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule of the settings; vectors, soft tokens and gates do not decay."""
        named = {n.replace(FSDP_PREFIX, ""): p for n, p in self.model.named_parameters()}
        groups = [
            {
                "params": [p for n, p in named.items() if n not in self._spared],
                "weight_decay": self.settings.weight_decay,
            },
            {
                "params": [p for n, p in named.items() if n in self._spared],
                "weight_decay": 0.0,
            },
        ]
        # On a GPU: one kernel for all weights, without a second copy of them during the step.
        fused = self.device.type == "cuda"
        rate = self.settings.learning_rate
        optimizer = AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=fused)
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, self.settings))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the norm of the settings, and keep the norm. Raises `NonFiniteLossError`."""
        root = self.trainer.strategy.model
        if isinstance(root, FullyShardedDataParallel):
            norm = root.clip_grad_norm_(self.settings.clip)
        else:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.gradient_norm = norm.item()
        self.last_learning_rate = optimizer.param_groups[0]["lr"]
        if not bool(norm.isfinite()):
            self._stop(f"the norm of the gradient is {self.gradient_norm}")

    def _stop(self, what: str) -> NoReturn:
        raise NonFiniteLossError(
            f"{what} at step {self.global_step + 1}, documents {self._documents.tolist()} of the "
            "training split; nothing was updated with it. Lower trainer.learning_rate or "
            "trainer.clip, or look at the documents"
        )
