"""What error feedback does around a selection: compensate before it, keep what was not sent after it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.gradient.channel import Channel, Window
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier
from sparsetrain.kernels.scatter import scatter_add


class Feedback(abc.ABC):
    """State is kept per coordinate in `fields` of the channel, in U-coordinates.

    `select` and `keep` leave the channel's present state alone; `commit`, called when all buckets have arrived
    everywhere, changes it. A step that is skipped in between has not happened.
    """

    fields: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()  # of the fields, those that the mean will get, 1 / P of each rank's
    shared: tuple[str, ...] = ()  # of the fields, those that all ranks hold alike
    # Whether `select` hands its ask to a sparsifier that `gathers` before it looks at the buffer.
    gathers = False
    clip = 0.0  # norm of one rank's whole gradient times sqrt(P), before anything is accumulated; 0: none

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abc.abstractmethod
    def select(self, channel: Channel | Window, sparsifier: Sparsifier, ask: Ask) -> Entries:
        """Return what to send of the buffer, which holds the gradient; the buffer becomes the rest. Of a window of a
        channel the places are those in the window."""

    @abc.abstractmethod
    def keep(self, channel: Channel, entries: Entries, outcome: Outcome) -> None:
        """Take back what did not arrive, and stage the next state."""

    def commit(self, channel: Channel) -> None:
        """Make the staged state the present one, and `channel.mean` what the optimizer shall see."""
        channel.commit()

    def newcomer(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the fields of one tensor for a rank that joins, from those of a rank that was there."""
        return {field: t if field in self.shared else torch.zeros_like(t) for field, t in state.items()}

    def reconcile(self, channel: Channel, mean: Callable[[Tensor], Tensor]) -> None:
        """Restore what holds between the ranks' fields, when ranks have come or gone; `mean` is collective."""
        return

    def dense(self, mean: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the optimizer shall see of tensors that travel dense, and their next state, `state` being the
        present one, which stays as it is; alike on all ranks."""
        return mean, state


def put_back(buffer: Tensor, outcome: Outcome) -> None:
    """Add what did not arrive to `buffer`."""
    for part in outcome.leftover:
        add(buffer, part)


def add(buffer: Tensor, entries: Entries, sign: float = 1.0) -> None:
    """Add `sign` times the entries to `buffer`."""
    if entries.indices is None:
        buffer.add_(entries.values, alpha=sign)
    else:
        scatter_add(buffer, entries.indices, entries.values, sign)
