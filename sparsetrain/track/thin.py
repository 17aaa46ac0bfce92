"""Long series made short as they come: of each stretch of points its lowest and its highest are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
KEPT = 200  # stretches that a curve is drawn from, at least, where it has as many points


class Thin:
    """Takes points in order, any number of them, and keeps at most four for each of `kept` stretches.

    A stretch is `width` points; when there are too many, neighbours become one. So the first, the last, the lowest and
    the highest point are always there, and a series of up to 2 x `kept` points is kept whole.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = max(2, kept)
        self.width = 1
        self.count = 0
        self.first: tuple[float, float] | None = None
        self.last: tuple[float, float] | None = None
        self.waiting = np.empty((0, 3))  # points of no whole stretch yet: position, x, y
        self.low = np.empty((0, 3))  # the lowest and the highest point of each stretch
        self.high = np.empty((0, 3))

    def add(self, x: Array, y: Array) -> None:
        """Take the points (x, y); those that are not finite are left out."""
        good = np.isfinite(x) & np.isfinite(y)
        x, y = x[good], y[good]
        if not len(x):
            return
        if self.first is None:
            self.first = (float(x[0]), float(y[0]))
        self.last = (float(x[-1]), float(y[-1]))
        points = np.stack([np.arange(self.count, self.count + len(x), dtype=np.float64), x, y], axis=1)
        self.count += len(x)
        self.waiting = np.concatenate([self.waiting, points])
        self._close()
        while len(self.low) > 2 * self.kept:
            self._merge()

    def points(self) -> list[tuple[float, float]]:
        """Return the points that are kept, in order."""
        found = np.concatenate([self.low, self.high, *_extremes(self.waiting[None]), _row(0, self.first)])
        found = np.concatenate([found, _row(self.count - 1, self.last)])
        _, places = np.unique(found[:, 0], return_index=True)
        return [(float(x), float(y)) for x, y in found[places, 1:]]

    def _close(self) -> None:
        """Make whole stretches of the points that wait."""
        whole = len(self.waiting) // self.width
        stretches = self.waiting[: whole * self.width].reshape(whole, self.width, 3)
        low, high = _extremes(stretches)
        self.low, self.high = np.concatenate([self.low, low]), np.concatenate([self.high, high])
        self.waiting = self.waiting[whole * self.width :]

    def _merge(self) -> None:
        """Make one stretch of each two; an odd one at the end stays as it is."""
        pairs = len(self.low) // 2
        lows, highs = (each[: 2 * pairs].reshape(pairs, 2, 3) for each in (self.low, self.high))
        self.low = np.concatenate([_extremes(lows)[0], self.low[2 * pairs :]])
        self.high = np.concatenate([_extremes(highs)[1], self.high[2 * pairs :]])
        self.width *= 2


def _extremes(stretches: Array) -> tuple[Array, Array]:
    """Return the lowest and the highest point of each stretch; the earlier of equals."""
    if not stretches.size:
        return np.empty((0, 3)), np.empty((0, 3))
    rows = np.arange(len(stretches))
    return stretches[rows, stretches[:, :, 2].argmin(1)], stretches[rows, stretches[:, :, 2].argmax(1)]


def _row(position: int, point: tuple[float, float] | None) -> Array:
    return np.empty((0, 3)) if point is None else np.array([[float(position), *point]])
