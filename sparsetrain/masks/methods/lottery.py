"""Lottery tickets by pruning and rewinding in turn (Frankle and Carbin, ICLR 2019; Frankle et al., ICML 2020)."""

from __future__ import annotations

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.pruner import Pruner


class Lottery(Pruner):
    """Trains, keeps the largest |w|, puts all weights back to what they were at an early step, and trains again, round
    after round within one run. Optimizer, residuals and learning rate begin anew. Needs nothing on the wire."""

    Config = NoOptions

    schedule = "rounds"
    rewinds = True
