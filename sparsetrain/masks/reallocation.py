"""How weights that were dropped in one layer are grown in another, the total being exact."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparsetrain.masks.methods.base import Moment

# Units are equally large in all tensors here, so that moving one changes no total.
STRUCTURES = ("unstructured", "block")


def share_out(total: int, wishes: Mapping[str, float], rooms: Mapping[str, int]) -> dict[str, int]:
    """Return whole numbers in proportion to `wishes`, none above its room, that sum to `total` or to all room.

    What would go beyond a room is spent on the others. Remainders go to the largest fraction, the earlier of equals
    first; where nobody with room left has a wish, room itself is what is shared by.
    """
    total = min(total, sum(rooms.values()))
    full: set[str] = set()
    while True:
        left = total - sum(rooms[name] for name in full)
        rest = [name for name in rooms if name not in full]
        wanted = {name: float(wishes[name]) for name in rest}
        if not any(wanted.values()):
            wanted = {name: float(rooms[name]) for name in rest}
        whole = math.fsum(wanted.values())
        ideal = {name: left * (wanted[name] / whole) if whole else 0.0 for name in rest}
        over = {name for name in rest if ideal[name] > rooms[name]}
        if not over:
            break
        full |= over
    given = {name: rooms[name] if name in full else min(rooms[name], math.floor(ideal[name])) for name in rooms}
    while (missing := total - sum(given.values())) > 0:
        open_ = [name for name in rest if given[name] < rooms[name]]
        for name in sorted(open_, key=lambda name: given[name] - ideal[name])[:missing]:
            given[name] += 1
    return given


def reallocated(
    moments: Mapping[str, Moment], counts: Mapping[str, int], kept: Mapping[str, int], wishes: Mapping[str, float]
) -> dict[str, int]:
    """Return the active weights of each tensor: the units that it has `kept`, and of those that `counts` leave to be
    grown a share in proportion to `wishes`. Where more are kept than `counts` allow, all shrink alike."""
    size = next((moment.layout.size for moment in moments.values()), 1)
    units = {name: moment.weight.numel() // size for name, moment in moments.items()}
    free = sum(counts.values()) // size - sum(kept.values())
    if free < 0:
        return {name: size * n for name, n in share_out(free + sum(kept.values()), kept, kept).items()}
    grown = share_out(free, wishes, {name: units[name] - kept[name] for name in units})
    return {name: size * (kept[name] + grown[name]) for name in units}
