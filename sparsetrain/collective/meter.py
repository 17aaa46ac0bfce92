"""Bytes that this rank puts on the wire, counted from real buffers, by purpose."""

from __future__ import annotations

from typing import Literal

Kind = Literal["gradient", "mask", "control"]


class ByteMeter:
    """Cumulative bytes sent by this rank: `gradient`, `mask` (scores, bitmaps) and `control` (flags, digests)."""

    def __init__(self) -> None:
        self.sent: dict[Kind, float] = {"gradient": 0.0, "mask": 0.0, "control": 0.0}

    def add(self, kind: Kind, count: float) -> None:
        self.sent[kind] += count

    @property
    def total(self) -> float:
        """Return the bytes of all kinds."""
        return sum(self.sent.values())
