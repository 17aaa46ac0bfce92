"""One update."""

from __future__ import annotations

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.schedule import MaskSchedule


class OneShot(MaskSchedule):
    """A single update to the final sparsity, the first that `begin` and `every` allow."""

    Config = NoOptions

    def updates(self) -> list[int]:
        """See MaskSchedule."""
        return self.span.updates()[:1]

    def sparsity(self, final: float, step: int) -> float:
        """See MaskSchedule."""
        return final
