"""What every image classifier shares: its loss and its evaluation sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """A batch is (images [B, 1, H, W] fp32, labels [B] int64); forward returns logits [B, classes]."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return F.cross_entropy(self(batch[0]).float(), batch[1])

    def metrics(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return sums over the batch: loss_sum (nats), count, correct."""
        logits = self(batch[0]).float()
        return {
            "loss_sum": F.cross_entropy(logits, batch[1], reduction="sum"),
            "count": torch.tensor(len(batch[1])),
            "correct": (logits.argmax(1) == batch[1]).sum(),
        }
