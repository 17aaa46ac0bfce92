"""Keep the k coordinates of largest magnitude, exactly."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.kernels.topk import compensate_select


class TopK:
    """Exact top-k of |residual + gradient|; ties go to the lower index."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def select(self, residual: Tensor | None, buffer: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return (indices int32 ascending, values fp32) of exactly k coordinates of residual + buffer.

        `buffer` becomes residual + buffer with the selected places zeroed; `residual` is only read.
        """
        return compensate_select(residual, buffer, k)
