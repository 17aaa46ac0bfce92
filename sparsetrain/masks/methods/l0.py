"""L0 regularisation by hard concrete gates (Louizos, Welling, Kingma, ICLR 2018)."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from sparsetrain.config.numbers import Above0, Inside, NotNegative
from sparsetrain.masks.methods.learned import Learned

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # the paper's: temperature, and the interval that is clamped to [0, 1]
EDGE = math.log(-GAMMA / ZETA)  # a gate is shut in evaluation up to this log alpha
TINY = 1e-6  # how near to 0 and 1 a draw may come


class L0(Learned):
    """Every weight is multiplied by a hard concrete gate in [0, 1] whose log alpha is learned; the pull follows the
    gradient of the expected number of open gates. In training gates are drawn, in evaluation and for masks they are the
    paper's estimate, without temperature.

    The pull is a step of its own, whatever optimizer and learning rate, where the paper adds it to the loss: it stops
    when it shall, without momentum. It is the same on all ranks and never travels.

    A draw is keyed by seed, tensor and step: one for all ranks and micro-batches of a step, as the paper draws once a
    minibatch. So all ranks have the same model, the mean gradient is that of one model, and a run resumes bit for bit.
    The gradient of log alpha travels as a weight's does: twice the numbers, until the last update.
    """

    field = "gate"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:  # pyrefly: ignore[bad-override]
        """`open` is sigmoid(log alpha) at the start, `penalty` what a step in which the pull acts takes off log alpha,
        times the slope, `rate` the learning rate of the gates over that of the weights."""

        open: Inside = 0.7
        penalty: NotNegative = 0.1
        rate: Above0 = 10.0

    def first(self, weight: Tensor) -> Tensor:
        """Return log alpha, shaped as the weights."""
        return torch.full_like(weight, math.log(self.config.open / (1.0 - self.config.open)))

    def effective(self, weight: Tensor, learned: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return weights times gates."""
        logits = learned
        if generator is not None:
            lots = torch.rand(weight.shape, generator=generator).to(weight.device)
            logits = (torch.logit(lots, eps=TINY) + learned) / BETA
        return weight * (logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)

    def margin(self, weight: Tensor, learned: Tensor) -> Tensor:
        """Return log alpha above the value up to which the gate is shut in evaluation."""
        return learned - EDGE

    def press(self, learned: nn.Parameter) -> None:
        """Take penalty x p (1 - p) off log alpha, p = sigmoid(log alpha - beta log(-gamma / zeta)) the chance that the
        gate is open."""
        chance = (learned - BETA * EDGE).sigmoid()
        learned.sub_(self.config.penalty * chance * (1.0 - chance))
