"""What one rank has to say of one bucket: places and values, and what came of saying it."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Entries:
    """`values` fp32 [k] at `indices` int32 [k], ascending and unique; indices None: every place, in order.

    `shared`: all ranks hold the same indices, so only values need to travel. `even`: all ranks have as many entries.
    `asked`: the k that was asked for, the same on all ranks. `finite` False: the gradient held an infinity or
    not-a-number, the values mean nothing, and every rank has to skip the step.
    """

    indices: Tensor | None
    values: Tensor
    shared: bool = False
    even: bool = True
    asked: int = 0
    finite: bool = True

    def __len__(self) -> int:
        return self.values.numel()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a collective gives back beside the mean that it has written.

    `leftover`: the parts of this rank's entries that did not arrive (rounding, entries that lost a re-selection), so
    that over all ranks sum of leftovers + P x mean = sum of entries; places are unique inside each part.
    `arrived`: which of this rank's entries are in the mean (bool [k]), None for all. `finite` False, on all ranks
    alike: some rank's entries were not finite, and mean and leftover mean nothing. `distinct`: places in the mean.
    `sent`, `sent_square`: entries and their squared norm, where they were chosen on the way.
    """

    leftover: tuple[Entries, ...] = ()
    arrived: Tensor | None = None
    finite: bool = True
    distinct: int = 0
    sent: int = 0
    sent_square: float = 0.0
