"""Soft threshold reparameterisation (STR, Kusupati et al., ICML 2020)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from sparsetrain.config.numbers import Above0, BelowOne, Finite
from sparsetrain.masks.methods.learned import Learned


class STR(Learned):
    """The forward pass uses sign(w) relu(|w| - sigmoid(s)) (section 3), s learned per tensor; decay of s
    towards 0 raises the thresholds. Needs nothing on the wire but the gradient of s, a number a tensor.

    The decay is a share a step, whatever optimizer and learning rate: decoupled, where the paper adds it to the
    gradient. It is the same on all ranks and never travels.
    """

    field = "threshold"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:  # pyrefly: ignore[bad-override]
        """`initial` is the first s, `decay` the share of s that goes in a step in which the pull acts, `rate` the
        learning rate of s over that of the weights."""

        initial: Finite = -8.0
        decay: BelowOne = 5e-3
        rate: Above0 = 1.0

    def first(self, weight: Tensor) -> Tensor:
        """Return s, one number."""
        return torch.full((1,), self.config.initial, device=weight.device)

    def effective(self, weight: Tensor, learned: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the soft-thresholded weights."""
        return weight.sign() * self.margin(weight, learned).relu()

    def margin(self, weight: Tensor, learned: Tensor) -> Tensor:
        """Return |w| - sigmoid(s)."""
        return weight.abs() - learned.sigmoid()

    def press(self, learned: nn.Parameter) -> None:
        """Let s decay."""
        learned.mul_(1.0 - self.config.decay)
