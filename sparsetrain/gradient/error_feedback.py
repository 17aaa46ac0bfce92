"""What happens to the part of the gradient that is not sent."""

from __future__ import annotations

import dataclasses


class EF14:
    """Keep what was not sent and add it to the next gradient (Seide et al. 2014; Karimireddy et al., ICML 2019).

    Invariant (mass): sum of new residuals + P x mean = sum of (old residual + gradient).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    keeps = True

    def __init__(self, config: Config) -> None:
        self.config = config


class NoFeedback:
    """Forget what is not sent: a control, since top-k without feedback can diverge (Beznosikov et al. 2020)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    keeps = False

    def __init__(self, config: Config) -> None:
        self.config = config
