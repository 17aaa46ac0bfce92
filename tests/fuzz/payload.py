"""Messages of the gradient exchange, over all index codes and value codes.

A case is one byte that names the setup, then the message. Refusal: CorruptPayload. What is accepted must hold ascending
places in range and finite values, and is scattered, as a collective would.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import struct
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.collective import payload
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import HEADER, SUM, Codec, CorruptPayload, Frame
from sparsetrain.kernels.scatter import scatter_add
from tests.fuzz.mutations import changed
from tests.fuzz.target import Target

SIZES = ((1000, (0, 1, 3, 130, 300)), (70_000, (40, 700)), (1, (0, 1)))
LENGTH = 24  # of the header: where the length of the body stands


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the receiver knows before a message comes: how it is written, what about, and whose places it takes."""

    codec: Codec
    frame: Frame
    out: Tensor
    like: Entries | None = None


class Payloads(Target):
    refusals = (CorruptPayload,)
    traced = 1024

    def __init__(self) -> None:
        self.setups = list(_setups())

    def seeds(self) -> list[bytes]:
        cases = []
        for number, setup in enumerate(self.setups):
            if setup.like is not None:
                cases.append(bytes([number]) + _raw(setup.codec.encode(setup.like, setup.frame)))
                continue
            counts = next(counts for size, counts in SIZES if size == setup.frame.size)
            for count in counts:
                cases.append(bytes([number]) + _raw(setup.codec.encode(entries(count, setup.frame.size), setup.frame)))
        return cases

    def read(self, case: bytes) -> Hashable:
        number = (case[0] if case else 0) % len(self.setups)
        setup = self.setups[number]
        message = exact(case[1:])
        payload.length_of(message, setup.frame, 0)
        found = setup.codec.decode(message, setup.frame, 0, setup.like)
        values = found.values.numpy()
        assert np.isfinite(values).all(), "a value is not finite"
        places = found.indices
        if places is None:
            return number, -1
        index = places.numpy()
        assert len(index) == len(values), "places and values differ in number"
        if len(index):
            assert index[0] >= 0 and index[-1] < setup.frame.size, "a place is out of range"
            assert (index[1:] > index[:-1]).all(), "places are not ascending"
        scatter_add(setup.out, places, found.values, 0.0)
        return number, len(index).bit_length()

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        way = draw.random()
        body = 1 + HEADER.size
        if way < 0.1:
            data = bytearray(changed(case, corpus, draw))
        elif way < 0.2:
            data = bytearray(changed(case, corpus, draw, 1, body))
        else:
            data = bytearray(changed(case, corpus, draw, body))
        if way < 0.02 or len(data) < body:
            return bytes(data)
        if way > 0.12:
            struct.pack_into("<I", data, 1 + LENGTH, len(data) - body)
        if way > 0.05:
            reseal(data)
        return bytes(data)


def reseal(data: bytearray) -> None:
    """Give a message (behind one byte) the checksum of its content, as an attacker would."""
    message = torch.frombuffer(data, dtype=torch.uint8)[1:]
    total = payload._checksum(message)
    del message
    struct.pack_into("<I", data, 1 + HEADER.size - SUM, total)


def exact(data: bytes) -> Tensor:
    """Return the bytes as a tensor whose memory ends with them, where a sanitizer sees what is read beyond."""
    tensor = torch.empty(len(data), dtype=torch.uint8)
    tensor.numpy()[:] = np.frombuffer(data, np.uint8)
    return tensor


@functools.cache
def entries(count: int, size: int) -> Entries:
    """Return random entries, the same in every process; every place of 1 for the whole of it."""
    draw = torch.Generator().manual_seed(count * size)
    places = torch.randperm(size, generator=draw)[:count].sort().values.int()
    return Entries(places, torch.randn(count, generator=draw))


def _setups() -> list[Setup]:
    found = []
    for values in registry.names("value_code"):
        for size, _ in SIZES:
            frame = Frame(size=size, epoch=3, bucket=2, part=1)
            out = torch.zeros(size)
            for indices in registry.names("index_code"):
                found.append(Setup(_codec(indices, values), frame, out))
        shared = Entries(torch.arange(0, 200, 2, dtype=torch.int32), torch.linspace(-1, 1, 100), shared=True)
        found.append(Setup(_codec("auto", values), Frame(1000, 3, 2), torch.zeros(1000), shared))
        whole = Entries(None, torch.ones(64), shared=True)
        found.append(Setup(_codec("int32", values), Frame(64, 0, 0), torch.zeros(64), whole))
    return found


def _codec(indices: str, values: str) -> Codec:
    built = [registry.load(kind, name) for kind, name in (("index_code", indices), ("value_code", values))]
    return Codec(*(cls(cls.Config()) for cls in built))


def _raw(message: Tensor) -> bytes:
    return message.numpy().tobytes()
