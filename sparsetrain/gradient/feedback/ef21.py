"""EF21 (Richtarik, Sokolov, Fatkhullin, NeurIPS 2021) and EF21-SGDM (Fatkhullin, Tyurin, Richtarik, NeurIPS 2023).

What travels is the change of an estimate: each rank sends C(g - h_i) and moves its h_i by it, all move h by the mean.
The optimizer sees h, which is dense, at every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.config.component import NoOptions
from sparsetrain.config.numbers import Density
from sparsetrain.gradient.channel import Channel, Window
from sparsetrain.gradient.feedback.base import Feedback, add
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier


class EF21(Feedback):
    """Send the change of the gradient's estimate. Invariant: h = mean of all h_i; slow where gradients are noisy."""

    Config = NoOptions

    fields: tuple[str, ...] = ("local", "estimate")
    shared = ("estimate",)
    gathers = True

    def select(self, channel: Channel | Window, sparsifier: Sparsifier, ask: Ask) -> Entries:
        """acc = g - h_i."""
        return sparsifier.select(channel.read("local"), channel.buffer, dataclasses.replace(ask, scale=-1.0))

    def keep(self, channel: Channel, entries: Entries, outcome: Outcome) -> None:
        """Remember what h_i will move by, and stage h + mean, which the optimizer sees."""
        channel.moved = (entries, outcome.leftover)
        channel.release(channel.buffer)
        estimate = channel.work("estimate")
        torch.add(channel.read("estimate"), channel.mean, out=estimate)
        channel.mean.copy_(estimate)
        channel.stage("estimate", estimate)

    def commit(self, channel: Channel) -> None:
        """h_i += sent, h += mean."""
        assert channel.moved is not None
        sent, leftover = channel.moved
        local = channel.read("local")
        add(local, sent)
        for part in leftover:
            add(local, part, -1.0)
        channel.moved = None
        channel.commit()

    def newcomer(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """h_i = h: who is new sends the change from what everybody believes."""
        return {field: state["estimate"].clone() for field in state}

    def reconcile(self, channel: Channel, mean: Callable[[Tensor], Tensor]) -> None:
        """h_i += h - mean h_i."""
        local, estimate = channel.read("local"), channel.read("estimate")
        channel.kept["local"].write(local + (estimate - mean(local.clone())))


class EF21SGDM(EF21):
    """EF21 on each rank's momentum v_i = (1 - eta) v_i + eta g, which takes the noise out before the difference."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:  # pyrefly: ignore[bad-override]
        """`eta`: weight of the newest gradient."""

        eta: Density = 0.1

    fields = ("local", "estimate", "velocity")
    gathers = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def select(self, channel: Channel | Window, sparsifier: Sparsifier, ask: Ask) -> Entries:
        """acc = v_i - h_i."""
        velocity = channel.work("velocity")
        torch.mul(channel.read("velocity"), 1.0 - self.config.eta, out=velocity)
        velocity.add_(channel.buffer.mul_(self.config.eta))
        channel.buffer.copy_(velocity)
        return super().select(channel, sparsifier, ask)

    def keep(self, channel: Channel, entries: Entries, outcome: Outcome) -> None:
        """Stage the velocity beside what EF21 remembers."""
        channel.stage("velocity", channel.work("velocity"))
        super().keep(channel, entries, outcome)
