"""Square tiles that keep equally many weights in each row and in each column: n:m for both products."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from sparsetrain.masks.layout import Layout

ENUMERATED = 4  # tiles up to this side have at most 90 masks of one kind
GRAIN = 1e-12  # gains below this share of the largest possible score are rounding


class Tiles(Layout):
    """Each group is an m x m tile, row by row, and keeps n in every row and every column: as many units as the count
    allows, rounded to a whole n. The choice has the highest sum of scores that such a mask can have."""

    @property
    def side(self) -> int:
        """Return m."""
        return math.isqrt(self.units)

    def quota(self, count: int) -> int:
        """See Layout: a multiple of m."""
        return self.side * min(self.side, max(0, round(count / (self.groups * self.size * self.side))))

    def choose(self, scores: Tensor, quota: int | Tensor, among: Tensor | None = None) -> Tensor:
        """See Layout. `among` must hold a mask with `quota` units, as any mask of more does."""
        if among is None:
            return self._regular(scores, quota, torch.zeros_like(scores, dtype=torch.bool))
        chosen = self._regular(torch.where(among, scores.double(), 0.0), quota, among)
        if bool((chosen & ~among).any()):
            raise ValueError(f"no mask with {int(quota) // self.side} in each row and column among the candidates")
        return chosen

    def fill(self, kept: Tensor, scores: Tensor, quota: int) -> Tensor:
        """See Layout. `kept` must be part of a mask with at most `quota` units."""
        chosen = self._regular(torch.where(kept, 0.0, scores.double()), quota, kept)
        if bool((kept & ~chosen).any()):
            raise ValueError(f"no mask with {quota // self.side} in each row and column holds what is kept")
        return chosen

    def _regular(self, scores: Tensor, quota: int | Tensor, first: Tensor) -> Tensor:
        counts = {quota} if isinstance(quota, int) else set(quota.tolist())
        n, rest = divmod(counts.pop(), self.side)
        if counts or rest:
            raise ValueError("tiles keep equally many weights in every row")
        tiles = (self.groups, self.side, self.side)
        return regular(scores.view(tiles), n, first.view(tiles)).view(scores.shape)


def regular(scores: Tensor, n: int, first: Tensor) -> Tensor:
    """Return bool [T, m, m] with n true in each row and column of each tile: as many of `first` as there can be, then
    the highest sum of scores.

    Tiles up to 4 x 4 are exact by trying all masks; of equal ones the first counts, in the order of their rows' column
    indices. Larger ones are exact up to rounding: a mask is improved by exchanges along cycles of columns until none
    gains, which is where the sum is greatest (cycle cancelling, Klein 1967); equal sums are left as they are found.
    Raises ValueError when a score is NaN.
    """
    values, side = scores.double(), scores.shape[1]
    if bool(torch.isnan(values).any()):
        raise ValueError("a score is not a number")
    if n in (0, side):
        return torch.full_like(first, n > 0)
    # A place in `first` outweighs all scores of a tile; powers of two change no score but by its last bits.
    weighed = _scaled(values) + torch.where(first, 2.0 ** math.ceil(math.log2(2 * side**2 + 1)), 0.0)
    if side <= ENUMERATED:
        return torch.cat([_best_of_all(part, n) for part in weighed.split(1 << 16)])
    return torch.cat([_improved(part, n) for part in weighed.split(max(1, (1 << 22) // side**3))])


def _scaled(values: Tensor) -> Tensor:
    """Return scores within -1 and 1, each tile divided by a power of two."""
    finite = values.clamp(torch.finfo(torch.float64).min, torch.finfo(torch.float64).max).numpy()
    exponents = np.frexp(np.abs(finite).max(axis=(1, 2), keepdims=True))[1]
    return torch.from_numpy(np.ldexp(finite, -exponents))


@functools.cache
def _all_masks(side: int, n: int) -> tuple[Tensor, Tensor]:
    """Return the choices of a row, int64 [C, n], and all masks as one choice for each row, int64 [masks, m]."""
    rows = list(itertools.combinations(range(side), n))
    fitting = [
        chosen
        for chosen in itertools.product(range(len(rows)), repeat=side)
        if all(sum(column in rows[row] for row in chosen) == n for column in range(side))
    ]
    return torch.tensor(rows), torch.tensor(fitting)


def _best_of_all(values: Tensor, n: int) -> Tensor:
    side = values.shape[1]
    rows, masks = _all_masks(side, n)
    # One addition after the other: equal scores give equal sums, wherever a tile lies.
    row_sums = sum(values[:, :, rows[:, place]] for place in range(n))
    assert isinstance(row_sums, Tensor)
    sums = sum(row_sums[:, row, masks[:, row]] for row in range(side))
    assert isinstance(sums, Tensor)
    columns = rows[masks[sums.argmax(1)]]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(2, columns, True)


def _improved(values: Tensor, n: int) -> Tensor:
    tiles, side = len(values), values.shape[1]
    places = (torch.arange(side).unsqueeze(1) + torch.arange(n)) % side
    mask = torch.zeros(tiles, side, side, dtype=torch.bool).scatter_(2, places.expand(tiles, side, n), True)
    open_ = torch.arange(tiles)
    while len(open_):
        part, gained = _exchanged(values[open_], mask[open_])
        mask[open_] = part
        open_ = open_[gained]
    return mask


def _exchanged(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks after one exchange along a cycle that gains, and in which tiles there was one.

    Columns are nodes; an edge from u to v is the row that gains most by giving up u for v. Longest paths (Bellman,
    Ford) show a cycle that gains where they still grow after m rounds.
    """
    tiles, side = len(values), values.shape[1]
    every = torch.arange(tiles)
    gains = values.unsqueeze(2) - values.unsqueeze(3)  # [tile, row, given up, taken]
    possible = mask.unsqueeze(3) & ~mask.unsqueeze(2)
    edges, rows = gains.masked_fill(~possible, -torch.inf).max(1)
    grain = GRAIN * float(values.abs().max())
    length, before = torch.zeros(tiles, side, dtype=torch.float64), torch.zeros(tiles, side, dtype=torch.int64)
    grown = torch.zeros(tiles, side, dtype=torch.bool)
    for _ in range(side):
        longer, by = (length.unsqueeze(2) + edges).max(1)
        grown = longer > length + grain
        length, before = torch.where(grown, longer, length), torch.where(grown, by, before)
    found = grown.any(1)
    node = grown.int().argmax(1)
    for _ in range(side):
        node = before[every, node]
    start, moving, changed, gain = node, found.clone(), mask.clone(), torch.zeros(tiles, dtype=torch.float64)
    for _ in range(side):
        origin = before[every, node]
        row = rows[every, origin, node]
        gain += torch.where(moving, edges[every, origin, node], 0.0)
        at = every[moving]
        changed[at, row[moving], origin[moving]] = False
        changed[at, row[moving], node[moving]] = True
        node = origin
        moving = moving & (node != start)
    found &= gain > 0
    return torch.where(found.view(-1, 1, 1), changed, mask), found
