"""Which class a regime's name stands for."""

from __future__ import annotations

from sparsetrain.config.job import Exchange
from sparsetrain.gradient.feedback.base import Feedback
from sparsetrain.gradient.regimes.base import Regime
from sparsetrain.gradient.regimes.entries import DenseRegime, PackedRegime, SparseRegime
from sparsetrain.gradient.regimes.lowrank import LowRankRegime

REGIMES: dict[str, type[Regime]] = {
    "dense": DenseRegime,
    "packed": PackedRegime,
    "sparse": SparseRegime,
    "lowrank": LowRankRegime,
}


def build(settings: Exchange, feedback: Feedback | None = None) -> Regime:
    """Return the regime that the settings name, with their error feedback where none is given."""
    return REGIMES[settings.regime](settings, feedback or settings.error_feedback.build())
