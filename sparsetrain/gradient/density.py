"""How the density of the exchange moves: a geometric fall over the warm-up (DGC, ICLR 2018, section 3.3)."""

from __future__ import annotations


def density_at(step: int, density: float, start: float, warmup_steps: int) -> float:
    """Return the density of exchange number `step` (from 0); never below `density`."""
    if step >= warmup_steps or start <= density:
        return density
    return start * (density / start) ** (step / warmup_steps)


def entries(density: float, size: int) -> int:
    """Return k = max(1, round(density x size)), at most size: the entries sent of a bucket with `size` coordinates."""
    return min(size, max(1, round(density * size)))
