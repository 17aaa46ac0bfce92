"""The decoders of places and values, called as the payload does, but on memory that ends exactly where their part ends.

A case is a byte that names the code, two bytes of count, three of size, then the data. Refusal: ValueError, of
which CorruptCode is one.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from sparsetrain import registry
from tests.fuzz.mutations import changed
from tests.fuzz.payload import entries, exact
from tests.fuzz.target import Target

HEAD = 6
SHAPES = ((0, 1), (1, 1), (1, 9), (3, 100), (128, 1000), (129, 129), (300, 70_000), (700, 140_000))


class Codes(Target):
    refusals = (ValueError,)
    traced = 1024

    def __init__(self) -> None:
        self.places = [_built("index_code", name) for name in registry.names("index_code") if name != "auto"]
        self.values = [_built("value_code", name) for name in registry.names("value_code")]

    def seeds(self) -> list[bytes]:
        cases = []
        for count, size in SHAPES:
            given = entries(count, size)
            head = count.to_bytes(2, "little") + size.to_bytes(3, "little")
            for number, code in enumerate(self.places):
                cases.append(bytes([number]) + head + code.encode(given.indices, size).numpy().tobytes())
            for number, code in enumerate(self.values, len(self.places)):
                cases.append(bytes([number]) + head + code.encode(given.values).numpy().tobytes())
        return cases

    def read(self, case: bytes) -> Hashable:
        case = case.ljust(HEAD, b"\0")
        number = case[0] % (len(self.places) + len(self.values))
        count, size = int.from_bytes(case[1:3], "little"), int.from_bytes(case[3:6], "little")
        data = exact(case[HEAD:])
        if number < len(self.places):
            index = self.places[number].decode(data, count, size).numpy()
            assert len(index) == count, "another number of places"
            if count:
                assert index[0] >= 0 and index[-1] < size, "a place is out of range"
                assert (index[1:] > index[:-1]).all(), "places are not ascending"
            return number, count.bit_length(), size.bit_length()
        found = self.values[number - len(self.places)].decode(data, count).numpy()
        assert len(found) == count and np.isfinite(found).all(), "another number of values, or one that is not finite"
        return number, count.bit_length()

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        low = 0 if draw.random() < 0.2 else HEAD
        found = changed(case, corpus, draw, low)
        if draw.random() < 0.5:  # most lengths are wrong lengths, which is found out at once
            found = found[: len(case)] + case[len(found) :]
        return found


def _built(kind: str, name: str) -> Any:
    cls = registry.load(kind, name)
    return cls(cls.Config())
