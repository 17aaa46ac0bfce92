"""Methods that choose the mask once, before training, by what the model says of its first weights."""

from __future__ import annotations

import abc

from torch import Tensor

from sparsetrain.masks.methods.pruner import Pruner
from sparsetrain.masks.probe import Probe


class AtInit(Pruner):
    """One mask, chosen before the first step and then frozen. The papers rank all layers together: `global`."""

    changes = False
    at_init = True

    def rounds(self, sparsity: float) -> list[float]:
        """Return the sparsities to which the model is pruned one after the other, asked anew each time."""
        return [sparsity]

    @abc.abstractmethod
    def ask(self, probe: Probe) -> dict[str, Tensor]:
        """Return the signal of a round by parameter name. Collective."""
