"""Linear warm-up, then cosine."""

from __future__ import annotations

import math


def factor_at(step: int, steps: int, warmup: float, final: float) -> float:
    """Return the share of the peak learning rate at `step` (from 0) of `steps`.

    It climbs linearly over the first `warmup` share of the run, then falls as a cosine to `final` at the last step.
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - 1 - rise)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
