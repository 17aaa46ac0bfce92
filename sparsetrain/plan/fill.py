"""How many different places several ranks choose together: what their messages become when they are merged."""

from __future__ import annotations

import abc
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from sparsetrain.config.errors import JobError

LONGEST = 1 << 26  # bytes of a record


class Fill(abc.ABC):
    """The union of the choices of some ranks, as a share of all places."""

    @abc.abstractmethod
    def union(self, ranks: float, density: float) -> float:
        """Return the share of places that at least one of `ranks` chooses, each choosing a share of `density`."""


class Random(Fill):
    """Every rank draws its places for itself: the most that a union can be."""

    def union(self, ranks: float, density: float) -> float:
        """Return 1 - (1 - d)^P."""
        return 1.0 - (1.0 - density) ** ranks


@dataclasses.dataclass(frozen=True)
class Recorded(Fill):
    """Real choices: of `ranks` ranks, counts[j] places were chosen by j of them (counts[0]: by none).

    Of fewer ranks the union is the mean over all choices of so many of them (rarefaction); for more, what nobody has
    chosen yet is estimated from what one or two have (Chao; Colwell et al., J. Plant Ecology 2012, equations 4 and 9).
    """

    ranks: int
    counts: tuple[int, ...]
    source: str = ""

    @property
    def size(self) -> int:
        return sum(self.counts)

    @property
    def density(self) -> float:
        """Return the share that a rank chose, on average."""
        return sum(j * count for j, count in enumerate(self.counts)) / (self.ranks * self.size)

    def union(self, ranks: float, density: float) -> float:
        """See Fill. At another density than the recorded one, as large a share of the choices overlaps."""
        return min(1.0, self._places(ranks) / self.size * density / self.density)

    def _places(self, ranks: float) -> float:
        """Return how many places so many ranks choose together."""
        if ranks <= self.ranks:
            missed = [_ratio(self.ranks, j, ranks) for j in range(self.ranks + 1)]
            return sum(count * (1.0 - miss) for count, miss in zip(self.counts, missed, strict=True))
        seen, once = self.size - self.counts[0], self.counts[1]
        twice = self.counts[2] if self.ranks > 1 else 0
        rest = min(float(self.counts[0]), once**2 / (2 * twice) if twice else once * (once - 1) / 2)
        if rest <= 0:
            return float(seen)
        return seen + rest * (1.0 - (1.0 - once / (self.ranks * rest + once)) ** (ranks - self.ranks))


def _ratio(ranks: int, chosen: int, drawn: float) -> float:
    """Return how likely `drawn` of `ranks` ranks are none of the `chosen` ones: C(R-j, P) / C(R, P)."""
    if ranks - chosen < drawn:
        return 0.0
    gamma = math.lgamma
    return math.exp(
        gamma(ranks - chosen + 1) - gamma(ranks - chosen - drawn + 1) - gamma(ranks + 1) + gamma(ranks - drawn + 1)
    )


def recorded(path: pathlib.Path) -> Recorded:
    """Return the record of `bench supports` in a file. Raises JobError where it is none."""
    try:
        if path.stat().st_size > LONGEST or not path.is_file():
            raise ValueError("it is no file, or a huge one")
        tree = json.loads(path.read_text(encoding="utf-8"))
        ranks, counts = int(tree["ranks"]), tuple(int(count) for count in tree["counts"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise JobError(f"--supports {path}: no record of `sparsetrain bench supports`: {error}") from error
    if ranks < 1 or len(counts) != ranks + 1 or min(counts) < 0 or sum(counts[1:]) < 1:
        raise JobError(f"--supports {path}: wants counts for 0 to {ranks} of its ranks")
    return Recorded(ranks, counts, str(tree.get("source", "")))


def counted(choices: Sequence[np.ndarray], size: int) -> tuple[int, ...]:
    """Return how many of `size` places were chosen by 0, 1, 2 ... of the ranks whose places are given."""
    times = np.zeros(size, dtype=np.int64)
    for places in choices:
        times[places] += 1
    return tuple(np.bincount(times, minlength=len(choices) + 1).tolist())
