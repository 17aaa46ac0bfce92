"""Entries of the sum of a group of ranks: each rank adds up, remembers and selects in its own part of the bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.hierarchical import Hierarchical, Place
from sparsetrain.collective.payload import Frame
from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.channel import Channel, Window
from sparsetrain.gradient.density import entries
from sparsetrain.gradient.feedback.base import Feedback
from sparsetrain.gradient.regimes.base import Turn
from sparsetrain.gradient.regimes.entries import SparseRegime
from sparsetrain.gradient.sparsifiers.base import Ask


class ShardedRegime(SparseRegime):
    """Selection waits for the group's sum, so it is part of `communicate`.

    State lies with the owner of a coordinate. What a rank has elsewhere, of another regime, mask epoch or group, is
    given to the owners at the next exchange, which keeps its sum over ranks.
    """

    def __init__(self, config: Exchange, feedback: Feedback) -> None:
        super().__init__(config, feedback)
        assert isinstance(self.collective, Hierarchical)
        self.levels = self.collective
        self.arriving: dict[int, tuple[object, dict[str, Tensor]]] = {}  # by channel: the home after commit, and state

    def select(self, channel: Channel, gradients: Mapping[str, Tensor], turn: Turn) -> Any:
        """Return nothing but a word that there is something: the channel's buffer holds the gradient."""
        channel.take(gradients, turn.factor)
        return ()

    def sent(self, chosen: Any) -> tuple[int, float]:
        """See Regime: that is known in the end."""
        return 0, 0.0

    def communicate(self, channel: Channel, chosen: Any, turn: Turn, world: World) -> Outcome:
        """See Regime."""
        place = self.levels.place(channel.index, world)
        low, high = place.edges(place.number, channel.size)
        moved = self._moved(channel, place, (low, high), world)
        self.levels.add_up(channel.buffer, channel.index, world)
        own = self._own(channel, (low, high), moved, turn)
        frame = Frame(channel.size, turn.epoch, channel.index)
        outcome = self.levels.exchange(own, frame, self.codec, world, channel.mean)
        if outcome.finite:
            self.feedback.keep(channel, own, outcome)
        return dataclasses.replace(outcome, sent=len(own), sent_square=float(own.values.square().sum()))

    def _own(self, channel: Channel, part: tuple[int, int], moved: dict[str, Tensor], turn: Turn) -> Entries:
        """Return what is to be sent of the own part, in places of the whole bucket."""
        low, high = part
        window = Window(channel, low, high, moved)
        if low == high:
            for field in self.feedback.fields:  # the next state of what is staged there
                channel.work(field).zero_()
            nothing = torch.empty(0, dtype=torch.int32, device=channel.device)
            return Entries(nothing, torch.empty(0, device=channel.device))
        ask = Ask(entries(turn.density, high - low), 1.0, turn.step, channel.index)
        chosen = self.feedback.select(window, self.sparsifier, ask)
        assert chosen.indices is not None
        return dataclasses.replace(chosen, indices=chosen.indices + low)

    def _moved(self, channel: Channel, place: Place, part: tuple[int, int], world: World) -> dict[str, Tensor]:
        """Return the state with everything at its owners where it is not yet so; `commit` makes it the present one."""
        home = (place.generation, place.groups, part)
        self.arriving[channel.index] = (home, {})
        if channel.home != home:
            for field in self.feedback.fields:
                if field not in self.feedback.shared:
                    state = channel.read(field).clone()
                    self.levels.add_up(state, channel.index, world)
                    self.arriving[channel.index][1][field] = state
        return self.arriving[channel.index][1]

    def commit(self, channel: Channel) -> None:
        """See Regime."""
        home, state = self.arriving.pop(channel.index)
        for field, tensor in state.items():
            if not channel.kept[field].staged:  # else the next state was made from it
                channel.kept[field].write(tensor)
        super().commit(channel)
        channel.home = home
