"""Bytes that this rank puts on the wire, counted from real buffers, by purpose."""

from __future__ import annotations

import threading
from typing import Literal

Kind = Literal["gradient", "mask", "weight", "control"]


class ByteMeter:
    """Cumulative bytes sent by this rank: `gradient`, `mask` (scores, bitmaps), `weight` (where an engine spreads them
    or their updates over the ranks) and `control` (flags, digests).

    Several threads may add at the same time.
    """

    def __init__(self) -> None:
        self.sent: dict[Kind, float] = {"gradient": 0.0, "mask": 0.0, "weight": 0.0, "control": 0.0}
        self._lock = threading.Lock()

    def add(self, kind: Kind, count: float) -> None:
        """Book `count` bytes under `kind`."""
        with self._lock:
            self.sent[kind] += count

    @property
    def total(self) -> float:
        """Return the bytes of all kinds."""
        return sum(self.sent.values())
