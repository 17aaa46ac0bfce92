"""The message of one bucket, or of one region of it: a header, encoded places, encoded values.

The receiver trusts nothing: magic, version, codes, bucket, part, mask epoch, size, count, length and checksum are
compared, and the decoders check order and range of the places and that values are finite, before anything is scattered.
"""

from __future__ import annotations

import dataclasses
import struct

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.collective.index_codes import IndexCode
from sparsetrain.collective.value_codes import ValueCode
from sparsetrain.kernels.checksum import checksum

HEADER = struct.Struct("<4sBBBBHHIIIII")
MAGIC = b"SPTR"
VERSION = 2
LONGEST = 16  # bytes that no code needs for an entry
SUM = 4  # bytes of the checksum, the last field of the header
NOT_FINITE = 1
SHARED = 255  # in place of an index code: no places travel


class CorruptPayload(RuntimeError):
    """A message that is not what this rank expects; it names what differs and is never scattered."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a message is about: a bucket of `size` coordinates at a mask epoch, or its region number `part`."""

    size: int
    epoch: int
    bucket: int
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Codec:
    """How places and values are written."""

    indices: IndexCode
    values: ValueCode

    @property
    def fixed(self) -> bool:
        """Return whether equal counts give messages of equal length."""
        return self.indices.fixed

    def bytes(self, count: int, size: int, shared: bool = False) -> int:
        """Return the bytes of a message with `count` of `size` entries; an estimate when the code is not fixed."""
        return HEADER.size + self.values.bytes(count) + (0 if shared else self.indices.bytes(count, size))

    def encode(self, entries: Entries, frame: Frame) -> Tensor:
        """Return the message, uint8 on the CPU."""
        count = len(entries)
        parts = [self.values.encode(entries.values.cpu())]
        number = SHARED
        if not entries.shared and entries.indices is not None:
            number, places = self.indices.write(entries.indices.cpu(), frame.size)
            parts.insert(0, places)
        length = sum(part.numel() for part in parts)
        message = torch.empty(HEADER.size + length, dtype=torch.uint8)
        torch.cat(parts, out=message[HEADER.size :])
        flags = 0 if entries.finite else NOT_FINITE
        fields = (MAGIC, VERSION, number, self.values.number, flags, frame.bucket, frame.part, frame.epoch)
        message[: HEADER.size] = _bytes(HEADER.pack(*fields, frame.size, count, length, 0))
        message[HEADER.size - SUM : HEADER.size] = _bytes(_checksum(message).to_bytes(SUM, "little"))
        return message

    def decode(self, message: Tensor, frame: Frame, source: int, like: Entries | None = None) -> Entries:
        """Return the entries of a message from rank `source` about `frame`, on the CPU.

        With `like`, the message must hold as many entries, and takes its places from there when it carries none.
        Raises CorruptPayload when anything is not as expected.
        """
        message = message.cpu()
        where = f"rank {source}, bucket {frame.bucket}"
        head = _head(message, where)
        expected = (frame.bucket, frame.part, frame.epoch, frame.size)
        if (head.bucket, head.part, head.epoch, head.size) != expected:
            raise CorruptPayload(f"{where}: header {head}, expected (bucket, part, mask epoch, size) {expected}")
        if head.values != self.values.number or head.count > frame.size:
            raise CorruptPayload(f"{where}: header {head}, expected value code {self.values.number}")
        if like is not None and head.count != len(like):
            raise CorruptPayload(f"{where}: {head.count} entries, expected {len(like)}")
        if message.numel() != HEADER.size + head.length:
            raise CorruptPayload(f"{where}: {message.numel()} bytes, expected {HEADER.size + head.length}")
        if _checksum(message) != head.checksum:
            raise CorruptPayload(f"{where}: checksum does not match")
        return self._body(message[HEADER.size :], head, frame, where, like)

    def _body(self, body: Tensor, head: Head, frame: Frame, where: str, like: Entries | None) -> Entries:
        split = body.numel() - self.values.bytes(head.count)
        if split < 0:
            raise CorruptPayload(f"{where}: {body.numel()} bytes for {head.count} entries")
        finite = not head.flags & NOT_FINITE
        try:
            values = self.values.decode(body[split:], head.count)
            if head.indices == SHARED:
                if like is None or not like.shared or split:
                    raise ValueError("a message without places where places are expected")
                return Entries(like.indices, values, shared=True, finite=finite)
            code = self.indices.reader(head.indices)
            return Entries(code.decode(body[:split], head.count, frame.size), values, finite=finite)
        except ValueError as error:
            raise CorruptPayload(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Head:
    """The header of a message, as read."""

    indices: int
    values: int
    flags: int
    bucket: int
    part: int
    epoch: int
    size: int
    count: int
    length: int
    checksum: int


def length_of(message: Tensor, frame: Frame, source: int) -> int:
    """Return the bytes of a message of which this is the beginning, its header at least.

    Raises CorruptPayload where the header is none, or tells of more bytes than `frame.size` entries could take.
    """
    where = f"rank {source}, bucket {frame.bucket}"
    length = HEADER.size + _head(message[: HEADER.size].cpu(), where).length
    if length > longest(frame.size):
        raise CorruptPayload(f"{where}: {length} bytes for a bucket of {frame.size}")
    return length


def longest(size: int) -> int:
    """Return more bytes than a message about `size` coordinates can have."""
    return LONGEST * (size + 64) + HEADER.size


def is_whole(message: Tensor, source: int) -> bool:
    """Return whether a message holds values without places. Raises CorruptPayload where its header is none."""
    return _head(message.cpu(), f"rank {source}").indices == SHARED


def _head(message: Tensor, where: str) -> Head:
    raw = bytes(message[: HEADER.size].numpy())
    if len(raw) != HEADER.size or raw[:4] != MAGIC:
        raise CorruptPayload(f"{where}: header {raw[:4]!r}, expected {MAGIC!r}")
    _, version, *fields = HEADER.unpack(raw)
    if version != VERSION:
        raise CorruptPayload(f"{where}: header of version {version}, expected {VERSION}")
    return Head(*fields)


def _checksum(message: Tensor) -> int:
    """Return the sum over header and body, without the place of the sum itself."""
    return checksum(message[: HEADER.size - SUM]) ^ checksum(message[HEADER.size :])


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
