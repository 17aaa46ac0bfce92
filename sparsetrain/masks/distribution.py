"""How the global budget of active weights is shared over the layers."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sparsetrain.config.component import NoOptions

Shapes = Mapping[str, tuple[int, ...]]
# The candidates' unit scores of each tensor (1-D, float64) and how many weights a unit has.
Ranked = Callable[[], Mapping[str, tuple[Tensor, int]]]


def exact_counts(densities: Mapping[str, float], shapes: Shapes, sparsity: float) -> dict[str, int]:
    """Return whole counts per tensor, next to their shares, that sum to round((1 - sparsity) x N)."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    ideal = {name: densities[name] * sizes[name] for name in sizes}
    counts = {name: min(sizes[name], math.floor(value + 1e-9)) for name, value in ideal.items()}
    left = round((1.0 - sparsity) * sum(sizes.values())) - sum(counts.values())
    step = 1 if left > 0 else -1
    while left:
        # Whoever is furthest from its share gives or takes one, the earlier of equals first; whole tensors come last,
        # because a tensor that is dense needs no mask.
        movable = [name for name in sizes if 0 <= counts[name] + step <= sizes[name]]
        for name in sorted(movable, key=lambda name: (densities[name] == 1.0, step * (counts[name] - ideal[name])))[
            : abs(left)
        ]:
            counts[name] += step
            left -= step
    return counts


class Distribution(abc.ABC):
    """Shares the active weights over tensors."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abc.abstractmethod
    def counts(self, shapes: Shapes, sparsity: float, ranked: Ranked) -> dict[str, int]:
        """Return the active weights of each tensor. `ranked` is asked only by those who compare scores across them."""


class ByShape(Distribution):
    """Shares by the shapes alone."""

    @abc.abstractmethod
    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of each tensor, at most 1."""

    def counts(self, shapes: Shapes, sparsity: float, ranked: Ranked) -> dict[str, int]:
        """See Distribution. The counts sum to round((1 - sparsity) x N)."""
        return exact_counts(self.densities(shapes, sparsity), shapes, sparsity)


class Uniform(ByShape):
    """The same density in every layer."""

    Config = NoOptions

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """See ByShape."""
        return dict.fromkeys(shapes, 1.0 - sparsity)


class ERK(ByShape):
    """Erdos-Renyi-Kernel: density in proportion to sum(shape) / prod(shape) (Mocanu 2018; Evci, RigL 2020).

    A layer that would be more than dense is made dense, and what it leaves over is spent on the others.
    """

    Config = NoOptions

    def raw(self, shape: tuple[int, ...]) -> float:
        """Return what the density of a tensor is proportional to."""
        return sum(shape) / math.prod(shape)

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """See ByShape."""
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        raw = {name: self.raw(shape) for name, shape in shapes.items()}
        # As in the authors' code each layer's share of zeros is rounded down before the budget is summed.
        budget = sum(size - math.floor(sparsity * size) for size in sizes.values())
        dense: set[str] = set()
        while len(dense) < len(sizes):
            rest = [name for name in sizes if name not in dense]
            scale = (budget - sum(sizes[name] for name in dense)) / sum(raw[name] * sizes[name] for name in rest)
            highest = max(raw[name] for name in rest)
            if scale * highest <= 1.0:
                return {name: 1.0 if name in dense else scale * raw[name] for name in sizes}
            dense |= {name for name in rest if raw[name] == highest}
        return dict.fromkeys(sizes, 1.0)


class ER(ERK):
    """Erdos-Renyi: density in proportion to (inputs + outputs) / (inputs x outputs), kernels not counted (SET)."""

    def raw(self, shape: tuple[int, ...]) -> float:
        """See ERK."""
        return (shape[0] + shape[1]) / (shape[0] * shape[1])
