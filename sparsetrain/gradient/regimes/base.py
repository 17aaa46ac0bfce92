"""How a bucket travels: the two stages of its way, and what that way keeps."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsetrain.collective.collective import Volume
from sparsetrain.collective.entries import Outcome
from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.feedback.base import Feedback


@dataclasses.dataclass(frozen=True)
class Turn:
    """One exchange: its number, the mask epoch, the density of sparse buckets, the factor of all gradients, and whether
    it is one of the first, in which lowrank sends everything."""

    step: int = 0
    epoch: int = 0
    density: float = 1.0
    factor: float = 1.0
    warming: bool = False


class Regime(abc.ABC):
    """The way of one or more buckets. `select` runs on the thread that selects, `communicate` on one that communicates.

    Both leave the channel's present state alone; `commit`, called when all buckets have arrived everywhere, changes it.
    `lossless`: a step loses nothing but rounding. `reduces`: it goes by all-reduce, not by gathers.
    """

    lossless = False
    reduces = False

    def __init__(self, config: Exchange, feedback: Feedback) -> None:
        self.config = config
        self.feedback = feedback

    @abc.abstractmethod
    def select(self, channel: Channel, gradients: Mapping[str, Tensor], turn: Turn) -> Any:
        """Return what is to be sent of the gradients of a bucket that has coordinates."""

    @abc.abstractmethod
    def communicate(self, channel: Channel, chosen: Any, turn: Turn, world: World) -> Outcome:
        """Leave the mean over ranks in the channel, and what did not arrive staged as its next state. Collective."""

    @abc.abstractmethod
    def volume(self, channel: Channel, ranks: int, density: float) -> Volume:
        """Return what one rank sends of the bucket, from the formula."""

    def sent(self, chosen: Any) -> tuple[int, float]:
        """Return the entries chosen and their squared norm."""
        return 0, 0.0

    def commit(self, channel: Channel) -> None:
        """Make what was staged the present state."""
        channel.home = None
        self.feedback.commit(channel)

    def state(self) -> dict[str, Tensor]:
        """Return what steers the next exchange, the same on all ranks, as `room/name`."""
        return {}

    def load_state(self, state: Mapping[str, Tensor], ranks: int) -> None:
        """Put back what `state` returned; what does not fit is left out."""
        return

    def forget(self) -> None:
        """Drop what was learned about the buckets: their coordinates have changed."""
        return

    def restart(self) -> None:
        """Drop all that was learned: weights have been rewound."""
        self.forget()
