"""Deep Gradient Compression's selection: a threshold from a sample, corrected when the count is off."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.config.numbers import Density, Positive
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier, compensate

LEAST, MOST = 0.8, 1.3  # shares of k that are accepted


class Sampled(Sparsifier):
    """DGC's sampling (Lin et al., ICLR 2018, section 3.1 and its code): the top of a strided sample gives a threshold.

    Above 1.3 k the largest k of the candidates are taken; below 0.8 k the threshold is lowered by 0.8 and counted
    again. For comparison: `topk` samples as well, but is exact in one pass.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`sample`: share of the bucket that is looked at; `rounds`: how often the threshold may be lowered."""

        sample: Density = 0.01
        rounds: Positive = 10

    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """See Sparsifier: up to 1.3 k entries."""
        compensate(old, buffer, ask.scale)
        if not (bool(torch.isfinite(buffer.sum())) or bool(torch.isfinite(buffer).all())):
            places = torch.arange(ask.k, dtype=torch.int32, device=buffer.device)
            return Entries(places, torch.zeros_like(buffer[: ask.k]), even=False, asked=ask.k, finite=False)
        chosen = torch.from_numpy(self._choose(buffer.abs().cpu().numpy(), ask)).to(buffer.device)
        values = buffer[chosen]
        buffer[chosen] = 0.0
        return Entries(chosen.to(torch.int32), values, even=False, asked=ask.k)

    def _choose(self, magnitude: np.ndarray, ask: Ask) -> np.ndarray:
        size, k = magnitude.size, ask.k
        # At least as many as make the top of the sample meaningful, as in the published code.
        count = min(size, max(int(size * self.config.sample), round(100 * size / k), 1))
        stride = size // count
        sample = magnitude[ask.step % stride :: stride]
        rank = min(sample.size, max(1, round(sample.size * k / size)))
        threshold = np.partition(sample, sample.size - rank)[sample.size - rank]
        found = np.flatnonzero(magnitude >= threshold)
        for _ in range(self.config.rounds):
            if found.size >= LEAST * k:
                break
            threshold *= LEAST
            found = np.flatnonzero(magnitude >= threshold)
        if found.size > MOST * k:
            # By magnitude: cutting by position would starve the end of the bucket.
            order = np.argsort(-magnitude[found], kind="stable")[:k]
            found = np.sort(found[order])
        return found if found.size else np.array([int(magnitude.argmax())])
