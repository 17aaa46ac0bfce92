"""Deep Gradient Compression (Lin, Han, Mao, Wang, Dally, ICLR 2018): momentum on each rank, before the selection."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.config.numbers import BelowOne, NotNegative
from sparsetrain.gradient.channel import Channel, Window
from sparsetrain.gradient.feedback.base import Feedback, put_back
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier


class DGC(Feedback):
    """Momentum correction and factor masking (sections 3.2 and 3.3): the optimizer's own momentum must be 0.

    u = m u + g, v = v + u (Nesterov: u = m (u + g), v = v + u + g); the top-k of v is sent, and u and v are cleared
    where it arrived. Invariant: sum of v' + P x mean = sum of (v + u'). At k = n this is plain SGD when `masking` is
    on and momentum SGD when it is off. The warm-up sequence is `exchange.warmup` from 25 % (appendix C).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`clip`: norm of a rank's gradient times sqrt(P), before it is accumulated; 0 switches it off."""

        momentum: BelowOne = 0.9
        nesterov: bool = False
        masking: bool = True
        clip: NotNegative = 0.0

    fields = ("residual", "momentum")
    pending = fields

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.clip = config.clip

    def select(self, channel: Channel | Window, sparsifier: Sparsifier, ask: Ask) -> Entries:
        """Velocity before the selection; the channel's buffer becomes its rest."""
        momentum = channel.work("momentum")
        if self.config.nesterov:
            torch.add(channel.read("momentum"), channel.buffer, out=momentum).mul_(self.config.momentum)
            channel.buffer.add_(momentum)
        else:
            torch.mul(channel.read("momentum"), self.config.momentum, out=momentum).add_(channel.buffer)
            channel.buffer.copy_(momentum)
        return sparsifier.select(channel.read("residual"), channel.buffer, ask)

    def keep(self, channel: Channel, entries: Entries, outcome: Outcome) -> None:
        """Clear the momentum where the velocity arrived."""
        momentum = channel.work("momentum")
        if self.config.masking:
            if entries.indices is None:
                momentum.zero_()
            else:
                gone = entries.indices if outcome.arrived is None else entries.indices[outcome.arrived]
                momentum[gone.long()] = 0.0
        put_back(channel.buffer, outcome)
        channel.stage("residual", channel.buffer)
        channel.stage("momentum", momentum)

    def dense(self, mean: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Momentum after the mean, as the optimizer would have it, since the optimizer has none."""
        former = state.get("momentum", torch.zeros_like(mean))
        momentum = (former * self.config.momentum).add_(mean)
        seen = mean + self.config.momentum * momentum if self.config.nesterov else momentum.clone()
        return seen, {"momentum": momentum}
