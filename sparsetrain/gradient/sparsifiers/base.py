"""What a sparsifier is asked, and what it answers."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

from torch import Tensor

from sparsetrain.collective.entries import Entries


@dataclasses.dataclass(frozen=True)
class Ask:
    """`k` entries of `buffer + scale x old`, for bucket number `bucket` at exchange number `step`.

    `parts`, only for a sparsifier that `gathers`: fp32 tensors that stand for the buffer's content, end to end.
    """

    k: int
    scale: float = 1.0
    step: int = 0
    bucket: int = 0
    parts: tuple[Tensor, ...] = ()


class Sparsifier(abc.ABC):
    """Chooses what is sent. `shared`: all ranks choose the same places whatever the values are.

    `gathers`: it reads `ask.parts` where there are any, so that gradients need not be copied into the buffer first.
    """

    shared = False
    gathers = False

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abc.abstractmethod
    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """Return the chosen entries (indices int32 ascending, values fp32) of buffer + scale x old.

        `buffer` (fp32, 1-D, contiguous) becomes that sum with the chosen places zeroed; `old` is only read. Where
        the sum is not finite anywhere, entries with `finite=False` are returned and the buffer may hold anything.
        """


def compensate(old: Tensor | None, buffer: Tensor, scale: float) -> None:
    """Make `buffer` buffer + scale x old; multiplied and added separately, as every kernel does."""
    if old is not None:
        buffer.add_(old if scale == 1.0 else old * scale)
