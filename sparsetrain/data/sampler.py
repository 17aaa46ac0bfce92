"""Which samples a rank takes at a position of the run: a pure function, so resuming needs one number."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Sampler:
    """Every sample at most once an epoch, in an order drawn from (seed, epoch); the ragged end of an epoch is dropped.

    A global batch of `batch` samples is the same set however many ranks share it: each takes one contiguous part of
    it, the first ones a sample more where it does not divide.
    """

    def __init__(self, size: int, batch: int, rank: int, world_size: int, seed: int) -> None:
        self.size = size
        self.batch = batch
        self.rank = rank
        self.world_size = world_size
        if batch > size:
            raise ValueError(f"a global batch of {batch} is more than the {size} samples")
        self.seed = seed
        self.order = 0  # another number, another order
        self._epoch = (-1, 0)
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, position: int) -> Tensor:
        """Return this rank's sample numbers, int64 [n], of the global batch that begins at `position`."""
        return self.whole(position).tensor_split(self.world_size)[self.rank]

    def whole(self, position: int) -> Tensor:
        """Return all ranks' sample numbers, int64 [batch], of the global batch that begins at `position`."""
        epoch, at = divmod(self._begin(position), self.size)
        return self._permutation(epoch)[at : at + self.batch]

    def after(self, position: int) -> int:
        """Return the position at which the next global batch begins. Positions count samples, dropped ones too."""
        return self._begin(position) + self.batch

    def _begin(self, position: int) -> int:
        """Return where a batch at `position` begins: with the next epoch, where it does not fit into this one."""
        left = self.size - position % self.size
        return position if left >= self.batch else position + left

    def _permutation(self, epoch: int) -> Tensor:
        if (epoch, self.order) != self._epoch:
            order = f" {self.order}" if self.order else ""
            key = hashlib.blake2b(f"data {self.seed} {epoch}{order}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
            self._order = torch.randperm(self.size, generator=generator)
            self._epoch = (epoch, self.order)
        return self._order
