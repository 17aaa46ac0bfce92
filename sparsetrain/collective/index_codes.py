"""Ways to write k ascending places of a bucket as bytes. Each is exact; they differ in bytes per density.

`fixed` codes have a size that follows from (count, size) alone, so that ranks with equal k send equal messages; the
others need `all_gather_v`. The code's number travels in the header of the message.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.kernels import index_code


class IndexCode(abc.ABC):
    """What a job can name: a code, or a choice among codes."""

    fixed = True

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abc.abstractmethod
    def bytes(self, count: int, size: int) -> int:
        """Return the bytes of `count` places of `size`: exact for fixed codes, expected for random places otherwise."""

    @abc.abstractmethod
    def write(self, indices: Tensor, size: int) -> tuple[int, Tensor]:
        """Return the number of the code that was used and the bytes (uint8, CPU) of ascending unique int32 places."""

    @abc.abstractmethod
    def reader(self, number: int) -> Code:
        """Return the code of a message. Raises ValueError when the job does not allow that number."""


class Code(IndexCode):
    """One way to write places; `number` names it on the wire."""

    number: int

    def write(self, indices: Tensor, size: int) -> tuple[int, Tensor]:
        return self.number, self.encode(indices, size)

    def reader(self, number: int) -> Code:
        if number != self.number:
            raise ValueError(f"index code {number} is not the job's ({self.number})")
        return self

    def needs(self, indices: Tensor, size: int) -> int:
        """Return the bytes that these places take, without encoding them."""
        return self.bytes(indices.numel(), size)

    @abc.abstractmethod
    def encode(self, indices: Tensor, size: int) -> Tensor:
        """Return the bytes of ascending unique int32 CPU places."""

    @abc.abstractmethod
    def decode(self, data: Tensor, count: int, size: int) -> Tensor:
        """Return the places (int32). Raises ValueError when `data` is not what `encode` gives for count and size."""


class Int32(Code):
    """Four bytes a place: no work, for links faster than the encoder."""

    Config = NoOptions

    number = 1

    def bytes(self, count: int, size: int) -> int:
        return 4 * count

    def encode(self, indices: Tensor, size: int) -> Tensor:
        # A view of no places has a stride that no other type can be seen through.
        return indices.contiguous().view(torch.uint8) if indices.numel() else torch.empty(0, dtype=torch.uint8)

    def decode(self, data: Tensor, count: int, size: int) -> Tensor:
        if data.numel() != 4 * count:
            raise ValueError(f"{data.numel()} bytes for {count} places")
        indices = data.clone().view(torch.int32)
        if not index_code.check_ascending(indices, size):
            raise ValueError(f"indices not ascending in 0..{size - 1}")
        return indices


class Block16(Code):
    """Two bytes a place inside blocks of 65536: nearly no work, half of int32."""

    Config = NoOptions

    number = 2

    def bytes(self, count: int, size: int) -> int:
        return index_code.block16_bytes(count, size)

    def encode(self, indices: Tensor, size: int) -> Tensor:
        return index_code.encode_block16(indices, size)

    def decode(self, data: Tensor, count: int, size: int) -> Tensor:
        return index_code.decode_block16(data, count, size)


class EliasFano(Code):
    """Low bits plainly, high bits in unary (Elias 1974, Fano 1971): near the entropy of random places, fixed size."""

    Config = NoOptions

    number = 3

    def bytes(self, count: int, size: int) -> int:
        return index_code.elias_fano_bytes(count, size)

    def encode(self, indices: Tensor, size: int) -> Tensor:
        return index_code.encode_elias_fano(indices, size)

    def decode(self, data: Tensor, count: int, size: int) -> Tensor:
        return index_code.decode_elias_fano(data, count, size)


class Deltas(Code):
    """Gaps, bit-packed in blocks of 128 by the widest of the block: below the entropy where places cluster."""

    Config = NoOptions

    number = 4
    fixed = False

    def bytes(self, count: int, size: int) -> int:
        # The widest of 128 random gaps is about ln 128 = 4.9 mean gaps.
        width = max(1, int(4.9 * size / max(count, 1))).bit_length()
        return -(-count // 128) + count * width // 8

    def needs(self, indices: Tensor, size: int) -> int:
        return index_code.deltas_bytes(indices)

    def encode(self, indices: Tensor, size: int) -> Tensor:
        return index_code.encode_deltas(indices, size)

    def decode(self, data: Tensor, count: int, size: int) -> Tensor:
        return index_code.decode_deltas(data, count, size)


class Bitmap(Code):
    """One bit per coordinate of the update set, whatever the number of places: best above about 25 %."""

    Config = NoOptions

    number = 5

    def bytes(self, count: int, size: int) -> int:
        return index_code.bitmap_bytes(size)

    def encode(self, indices: Tensor, size: int) -> Tensor:
        return index_code.encode_bitmap(indices, size)

    def decode(self, data: Tensor, count: int, size: int) -> Tensor:
        return index_code.decode_bitmap(data, count, size)


class Auto(IndexCode):
    """The code with the fewest bytes for the places at hand, named in each message."""

    Config = NoOptions

    fixed = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.codes: list[Code] = [cls(config) for cls in (Int32, Block16, EliasFano, Deltas, Bitmap)]

    def bytes(self, count: int, size: int) -> int:
        return min(code.bytes(count, size) for code in self.codes)

    def write(self, indices: Tensor, size: int) -> tuple[int, Tensor]:
        return min(self.codes, key=lambda code: code.needs(indices, size)).write(indices, size)

    def reader(self, number: int) -> Code:
        for code in self.codes:
            if code.number == number:
                return code
        raise ValueError(f"there is no index code {number}")
