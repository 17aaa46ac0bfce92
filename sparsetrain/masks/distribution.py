"""How the global budget of active weights is shared over the layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def exact_counts(densities: Mapping[str, float], shapes: Shapes, sparsity: float) -> dict[str, int]:
    """Return whole counts per tensor, next to their shares, that sum to round((1 - sparsity) x N)."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    ideal = {name: densities[name] * sizes[name] for name in sizes}
    counts = {name: min(sizes[name], math.floor(value + 1e-9)) for name, value in ideal.items()}
    left = round((1.0 - sparsity) * sum(sizes.values())) - sum(counts.values())
    step = 1 if left > 0 else -1
    while left:
        # Whoever is furthest from its share gives or takes one, the earlier of equals first.
        movable = [name for name in sizes if 0 <= counts[name] + step <= sizes[name]]
        for name in sorted(movable, key=lambda name: step * (counts[name] - ideal[name]))[: abs(left)]:
            counts[name] += step
            left -= step
    return counts


class Uniform:
    """The same density in every layer."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of each tensor."""
        return dict.fromkeys(shapes, 1.0 - sparsity)

    def counts(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Return the active weights of each tensor."""
        return exact_counts(self.densities(shapes, sparsity), shapes, sparsity)


class ERK:
    """Erdos-Renyi-Kernel: density in proportion to sum(shape) / prod(shape) (Mocanu 2018; Evci, RigL 2020).

    A layer that would be more than dense is made dense, and what it leaves over is spent on the others.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of each tensor, at most 1."""
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
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

    def counts(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Return the active weights of each tensor."""
        return exact_counts(self.densities(shapes, sparsity), shapes, sparsity)
