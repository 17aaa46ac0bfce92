"""One-shot magnitude pruning (Han et al., NeurIPS 2015)."""

from __future__ import annotations

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.pruner import Pruner


class Magnitude(Pruner):
    """Trains dense, then keeps the largest |w| in one update; what is left is trained on. Needs nothing on the wire."""

    Config = NoOptions

    schedule = "one_shot"
