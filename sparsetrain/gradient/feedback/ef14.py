"""The classic: remember what was not sent, add it to the next gradient; and its control, which forgets."""

from __future__ import annotations

import dataclasses

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.config.component import NoOptions
from sparsetrain.config.numbers import Density
from sparsetrain.gradient.channel import Channel, Window
from sparsetrain.gradient.feedback.base import Feedback, put_back
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier


class EF14(Feedback):
    """Keep what was not sent and add it to the next gradient (Seide et al. 2014; Karimireddy et al., ICML 2019).

    Invariant (mass), with decay 1: sum of new residuals + P x mean = sum of (old residual + gradient).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`decay`: what part of the residual lives on to the next step."""

        decay: Density = 1.0

    fields = ("residual",)
    pending = fields
    gathers = True

    def select(self, channel: Channel | Window, sparsifier: Sparsifier, ask: Ask) -> Entries:
        """acc = decay x residual + gradient."""
        ask = dataclasses.replace(ask, scale=self.config.decay)
        return sparsifier.select(channel.read("residual"), channel.buffer, ask)

    def keep(self, channel: Channel, entries: Entries, outcome: Outcome) -> None:
        """residual = acc - what arrived."""
        put_back(channel.buffer, outcome)
        channel.stage("residual", channel.buffer)


class NoFeedback(Feedback):
    """Forget what is not sent: a control, since top-k without feedback can diverge (Beznosikov et al. 2020)."""

    Config = NoOptions
    gathers = True

    def select(self, channel: Channel | Window, sparsifier: Sparsifier, ask: Ask) -> Entries:
        """acc = gradient."""
        return sparsifier.select(None, channel.buffer, ask)

    def keep(self, channel: Channel, entries: Entries, outcome: Outcome) -> None:
        """Nothing stays."""
        channel.release(channel.buffer)
