"""How many different places several ranks choose together: what their messages become when they are merged."""

from __future__ import annotations

import abc
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from sparsetrain.config.errors import JobError


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

    A place that j of R ranks have chosen is taken to be one that each rank chooses with j/R. What nobody chose yet is
    found by Good and Turing's estimate: as likely, together, as what was chosen once.
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
        """See Fill. Another density than the recorded one scales every place's likelihood."""
        chosen = np.arange(len(self.counts), dtype=float)
        weights = np.asarray(self.counts, dtype=float)
        likely = chosen / self.ranks
        if len(self.counts) > 1 and weights[0] > 0:
            likely[0] = weights[1] / (self.ranks * weights[0]) / self.ranks
        share = float((weights * likely).sum() / self.size)  # what was never seen takes its part from what was
        likely = np.clip(likely * density / share, 0.0, 1.0)
        return float((weights * (1.0 - (1.0 - likely) ** ranks)).sum() / self.size)


def recorded(path: pathlib.Path) -> Recorded:
    """Return the record of `bench supports` in a file. Raises JobError where it is none."""
    try:
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
