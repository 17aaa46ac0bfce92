"""Ways to write the values of entries. What rounding takes away goes back into the residual of its sender."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.kernels import value_code


class ValueCode(abc.ABC):
    """`encode` fp32 values to bytes (uint8, CPU), and back; finite in, finite out."""

    number: int  # on the wire

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abc.abstractmethod
    def bytes(self, count: int) -> int:
        """Return the bytes of `count` values."""

    @abc.abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """Return the bytes of fp32 CPU values."""

    @abc.abstractmethod
    def decode(self, data: Tensor, count: int) -> Tensor:
        """Return the fp32 values. Raises ValueError when the length is wrong or a value is not finite."""


class FP32(ValueCode):
    """Four bytes a value, exact."""

    Config = NoOptions

    number = 1

    def bytes(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Tensor) -> Tensor:
        return values.contiguous().view(torch.uint8) if values.numel() else torch.empty(0, dtype=torch.uint8)

    def decode(self, data: Tensor, count: int) -> Tensor:
        return value_code.decode_fp32(data, count)


class BF16(ValueCode):
    """Two bytes, relative error below 2^-9; the default."""

    Config = NoOptions

    number = 2

    def bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Tensor) -> Tensor:
        return value_code.encode_bf16(values)

    def decode(self, data: Tensor, count: int) -> Tensor:
        return value_code.decode_bf16(data, count)


class Int8(ValueCode):
    """One byte and a scale per 256 values: under 1 % of the norm is rounded away."""

    Config = NoOptions

    number = 3

    def bytes(self, count: int) -> int:
        return value_code.int8_bytes(count)

    def encode(self, values: Tensor) -> Tensor:
        return value_code.encode_int8(values)

    def decode(self, data: Tensor, count: int) -> Tensor:
        return value_code.decode_int8(data, count)


class Int4(ValueCode):
    """Sign and one of eight levels, with a scale per 64 values: about 10 % of the norm is rounded away."""

    Config = NoOptions

    number = 4

    def bytes(self, count: int) -> int:
        return value_code.int4_bytes(count)

    def encode(self, values: Tensor) -> Tensor:
        return value_code.encode_int4(values)

    def decode(self, data: Tensor, count: int) -> Tensor:
        return value_code.decode_int4(data, count)
