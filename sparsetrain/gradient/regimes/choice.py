"""Which class a regime's name stands for."""

from __future__ import annotations

from sparsetrain import registry
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.feedback.base import Feedback
from sparsetrain.gradient.regimes.base import Regime
from sparsetrain.gradient.regimes.entries import DenseRegime, PackedRegime, SparseRegime
from sparsetrain.gradient.regimes.lowrank import LowRankRegime
from sparsetrain.gradient.regimes.sharded import ShardedRegime

REGIMES: dict[str, type[Regime]] = {
    "dense": DenseRegime,
    "packed": PackedRegime,
    "sparse": SparseRegime,
    "lowrank": LowRankRegime,
}


def build(settings: Exchange, feedback: Feedback | None = None) -> Regime:
    """Return the regime that the settings name, with their error feedback where none is given."""
    regime = REGIMES[settings.regime]
    if regime is SparseRegime and getattr(registry.load("collective", settings.collective.name), "shards", False):
        regime = ShardedRegime
    return regime(settings, feedback or settings.error_feedback.build())
