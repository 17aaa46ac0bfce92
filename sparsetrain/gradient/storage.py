"""How state that is kept per coordinate lies in memory between two exchanges: fp32, bf16, or 8 bits.

`stage` takes the next state, `commit` makes it the present one: an exchange that fails in between changes nothing.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # values per scale


class Storage(abc.ABC):
    """One field of one bucket."""

    now: Any
    next: Any

    @property
    def staged(self) -> bool:
        """Return whether there is a next state."""
        return self.next is not self.now

    @abc.abstractmethod
    def read(self) -> Tensor:
        """Return the state, fp32; not to be written to."""

    @abc.abstractmethod
    def stage(self, state: Tensor) -> None:
        """Take `state` (fp32) as the next one; it belongs to the storage from now on."""

    @abc.abstractmethod
    def commit(self) -> Tensor | None:
        """Make the staged state the present one; return a tensor of its size that is free now, if there is one."""

    @abc.abstractmethod
    def nbytes(self) -> int:
        """Return the bytes that are kept between two exchanges."""

    def write(self, state: Tensor) -> None:
        """Make `state` the present one at once."""
        self.stage(state)
        self.commit()


class FP32Storage(Storage):
    """Four bytes a coordinate, exact; present and next state swap places."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.now = torch.zeros(size, dtype=torch.float32, device=device)
        self.next = self.now

    def read(self) -> Tensor:
        return self.now

    def stage(self, state: Tensor) -> None:
        self.next = state

    def commit(self) -> Tensor | None:
        free, self.now = self.now, self.next
        return None if free is self.now else free

    def nbytes(self) -> int:
        return self.now.nbytes


class BF16Storage(Storage):
    """Two bytes a coordinate; state is rounded to 8 significant bits between exchanges, and that rounding is lost."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.now = torch.zeros(size, dtype=torch.bfloat16, device=device)
        self.next = self.now

    def read(self) -> Tensor:
        return self.now.float()

    def stage(self, state: Tensor) -> None:
        top = torch.finfo(torch.bfloat16).max
        self.next = state.clamp(-top, top).to(torch.bfloat16)

    def commit(self) -> Tensor | None:
        self.now = self.next
        return None

    def nbytes(self) -> int:
        return self.now.nbytes


class Int8Storage(Storage):
    """One byte a coordinate and a power of two per 256: what is far below the largest of its block is lost.

    The scale is a power of two so that reading and writing again gives the same bits, as a checkpoint needs.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        blocks = -(-size // BLOCK)
        self.now = (torch.zeros(blocks, BLOCK, dtype=torch.int8, device=device), torch.zeros(blocks, device=device))
        self.next = self.now

    def read(self) -> Tensor:
        codes, scale = self.now
        return (codes.float() * scale[:, None]).reshape(-1)[: self.size].contiguous()

    def stage(self, state: Tensor) -> None:
        blocks = torch.nn.functional.pad(state, (0, -self.size % BLOCK)).view(-1, BLOCK)
        # The smallest power of two with which the largest value is at most 127 steps.
        largest = blocks.abs().amax(1) / 127
        mantissa, exponent = torch.frexp(largest)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=-120)
        scale = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), 0.0)
        steps = torch.where(scale[:, None] > 0, blocks / scale[:, None], 0.0)
        self.next = (steps.round().clamp(-127, 127).to(torch.int8), scale)

    def commit(self) -> Tensor | None:
        self.now = self.next
        return None

    def nbytes(self) -> int:
        return self.now[0].nbytes + self.now[1].nbytes


STORAGES: dict[str, type] = {"fp32": FP32Storage, "bf16": BF16Storage, "int8": Int8Storage}
