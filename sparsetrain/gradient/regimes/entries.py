"""The regimes that send entries of the bucket: all of them (dense, packed) or those that a sparsifier chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.collective.collective import Collective, Load, Volume
from sparsetrain.collective.dense import Dense
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.packed import Packed
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.value_codes import FP32
from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.density import entries
from sparsetrain.gradient.feedback.base import Feedback
from sparsetrain.gradient.regimes.base import Regime, Turn
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier
from sparsetrain.gradient.sparsifiers.everything import Everything

COLLECTIVE = "collective/"  # before the names of a collective's state


class EntryRegime(Regime):
    """Compensate, select, encode, collective; what did not arrive goes back into the residual."""

    def __init__(self, config: Exchange, feedback: Feedback, sparsifier: Sparsifier, collective: Collective) -> None:
        super().__init__(config, feedback)
        self.sparsifier = sparsifier
        self.collective = collective
        self.codec = Codec(config.indices.build(), config.values.build())

    def density(self, turn: Turn) -> float:
        """Return which share of a bucket is sent."""
        return 1.0

    def select(self, channel: Channel, gradients: Mapping[str, Tensor], turn: Turn) -> Entries:
        """See Regime: the chosen entries; the channel's buffer holds the rest."""
        gathers = self.sparsifier.gathers and self.feedback.gathers and turn.factor == 1.0
        parts = channel.parts(gradients) if gathers else ()
        if parts:
            channel.reserve()
        else:
            channel.take(gradients, turn.factor)
        ask = Ask(entries(self.density(turn), channel.size), 1.0, turn.step, channel.index, parts)
        return self.feedback.select(channel, self.sparsifier, ask)

    def communicate(self, channel: Channel, chosen: Entries, turn: Turn, world: World) -> Outcome:
        """See Regime."""
        frame = Frame(channel.size, turn.epoch, channel.index)
        outcome = self.collective.exchange(chosen, frame, self.codec, world, channel.mean)
        if outcome.finite:
            self.feedback.keep(channel, chosen, outcome)
        return outcome

    def sent(self, chosen: Entries) -> tuple[int, float]:
        """See Regime."""
        return len(chosen), float(chosen.values.square().sum())

    def volume(self, channel: Channel, ranks: int, density: float) -> Volume:
        """See Regime: the formula of the collective."""
        count = entries(density, channel.size)
        return self.collective.volume(self._load(channel.size, count, ranks))

    def _load(self, size: int, count: int, ranks: int) -> Load:
        return Load(
            ranks=ranks,
            size=size,
            count=count,
            entry_bytes=self.codec.bytes(count, size) / count,
            value_bytes=self.codec.bytes(count, size, shared=True) / count,
        )

    def state(self) -> dict[str, Tensor]:
        """See Regime."""
        return {f"{COLLECTIVE}{key}": tensor for key, tensor in self.collective.state().items()}

    def load_state(self, state: Mapping[str, Tensor], ranks: int) -> None:
        """See Regime."""
        own = {key.removeprefix(COLLECTIVE): t for key, t in state.items() if key.startswith(COLLECTIVE)}
        self.collective.load_state(own, ranks)

    def forget(self) -> None:
        """See Regime."""
        self.collective.forget()


class SparseRegime(EntryRegime):
    """k entries of the bucket, as the sparsifier chooses."""

    def __init__(self, config: Exchange, feedback: Feedback) -> None:
        super().__init__(config, feedback, config.sparsifier.build(), config.collective.build())

    def density(self, turn: Turn) -> float:
        """See EntryRegime."""
        return turn.density


class PackedRegime(EntryRegime):
    """All values of the update set, without places: all ranks share the mask."""

    lossless = True

    def __init__(self, config: Exchange, feedback: Feedback) -> None:
        super().__init__(config, feedback, Everything(Everything.Config()), Packed(Packed.Config()))
        self.reduces = isinstance(self.codec.values, FP32)

    def volume(self, channel: Channel, ranks: int, density: float) -> Volume:
        """See Regime: every value."""
        return super().volume(channel, ranks, 1.0)


class DenseRegime(EntryRegime):
    """The whole bucket, the zeros of masked weights too."""

    lossless = True

    def __init__(self, config: Exchange, feedback: Feedback) -> None:
        super().__init__(config, feedback, Everything(Everything.Config()), Dense(Dense.Config()))
        self.reduces = isinstance(self.codec.values, FP32)

    def communicate(self, channel: Channel, chosen: Entries, turn: Turn, world: World) -> Outcome:
        """See Regime."""
        if channel.active is None:
            return super().communicate(channel, chosen, turn, world)
        whole = torch.zeros(channel.bucket.size, dtype=torch.float32, device=channel.device)
        whole[channel.active] = chosen.values
        frame = Frame(channel.bucket.size, turn.epoch, channel.index)
        everything = dataclasses.replace(chosen, values=whole)
        outcome = self.collective.exchange(everything, frame, self.codec, world, channel.flat)
        if not outcome.finite:
            return outcome
        torch.index_select(channel.flat, 0, channel.active, out=channel.mean)
        left = tuple(Entries(None, part.values[channel.active]) for part in outcome.leftover)
        outcome = dataclasses.replace(outcome, leftover=left)
        self.feedback.keep(channel, chosen, outcome)
        return outcome

    def volume(self, channel: Channel, ranks: int, density: float) -> Volume:
        """See Regime: every coordinate."""
        size = channel.bucket.size
        return self.collective.volume(self._load(size, size, ranks))
