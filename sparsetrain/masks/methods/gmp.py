"""Gradual magnitude pruning (Zhu and Gupta 2017): from dense to sparse along a cubic ramp."""

from __future__ import annotations

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.pruner import Pruner


class GMP(Pruner):
    """Gradual magnitude pruning: starts dense, keeps the largest |w| at a sparsity that rises as a cubic."""

    Config = NoOptions

    schedule = "cubic"
