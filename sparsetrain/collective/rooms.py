"""How long the messages of a bucket may be, so that nobody has to ask before they leave.

A code whose length depends on the places would need a round of lengths before each message, and that round waits behind
the messages that are on the wire. Lengths hardly change between exchanges, and every rank has seen those of the last
one in the headers: so all ranks give the next message the same room, a little more than the longest one took. What does
not fit follows in a second round, which all ranks know of from the headers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsetrain.collective.payload import HEADER, Frame, length_of
from sparsetrain.collective.transport import Transport

SLACK = 1.01  # room over the longest message of the last exchange


class Rooms:
    """Per bucket, the longest message over the codec's estimate. The same on all ranks: it comes from their headers."""

    def __init__(self) -> None:
        self._ratio: dict[int, float] = {}

    def gather(self, message: Tensor, frame: Frame, estimate: int, transport: Transport) -> list[Tensor]:
        """Return the messages of all ranks, in rank order. `estimate`: the codec's bytes, equal on all ranks.

        All ranks must call it, one thread per bucket at a time. Raises CorruptPayload where a header tells no length.
        """
        ratio = self._ratio.get(frame.bucket)
        if ratio is None:
            messages = transport.all_gather_v(message, "gradient")
        else:
            room = max(HEADER.size, math.ceil(ratio * SLACK * estimate))
            messages = _gather(message, frame, room, transport)
        self._ratio[frame.bucket] = max(each.numel() for each in messages) / estimate
        return messages

    def forget(self) -> None:
        """Ask again at the next call. All ranks must do so together."""
        self._ratio.clear()


def _gather(message: Tensor, frame: Frame, room: int, transport: Transport) -> list[Tensor]:
    messages = transport.all_gather(_piece(message, 0, room), "gradient")
    lengths = [length_of(each, frame, source) for source, each in enumerate(messages)]
    rest = max(lengths) - room
    if rest > 0:
        pieces = transport.all_gather(_piece(message, room, rest), "gradient")
        messages = [torch.cat(both) for both in zip(messages, pieces, strict=True)]
    return [each[:length] for each, length in zip(messages, lengths, strict=True)]


def _piece(message: Tensor, start: int, length: int) -> Tensor:
    """Return `length` bytes from `start`, zeros where the message has ended."""
    part = message[start : start + length]
    return part if part.numel() == length else torch.cat([part, part.new_zeros(length - part.numel())])
