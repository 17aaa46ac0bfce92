"""Which samples a rank takes at a position of the run: a pure function, so resuming needs one number."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Sampler:
    """Every sample at most once an epoch, in an order drawn from (seed, epoch); the ragged end of an epoch is dropped.

    A global batch is the same set of samples however many ranks share it.
    """

    def __init__(self, size: int, batch: int, rank: int, world_size: int, seed: int) -> None:
        self.size = size
        self.batch = batch
        self.rank = rank
        self.global_batch = batch * world_size
        if self.global_batch > size:
            raise ValueError(f"a global batch of {self.global_batch} is more than the {size} samples")
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, position: int) -> Tensor:
        """Return this rank's sample numbers, int64 [batch], of the global batch that begins at global `position`."""
        number = position // self.global_batch
        epoch, at = divmod(number, self.size // self.global_batch)
        start = at * self.global_batch + self.rank * self.batch
        return self._permutation(epoch)[start : start + self.batch]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            key = hashlib.blake2b(f"data {self.seed} {epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
            self._order = torch.randperm(self.size, generator=generator)
            self._epoch = epoch
        return self._order
