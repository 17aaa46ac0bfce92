"""Methods that keep the weights of highest saliency."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.masks.methods.base import MaskMethod, Moment


class Pruner(MaskMethod):
    """Starts dense and keeps the most salient of the active weights; what is pruned stays pruned."""

    starts_dense = True
    grows = False
    ranks_globally = True

    def update(self, moment: Moment) -> Tensor:
        """Return the most salient candidates, `moment.count` or as many as there are."""
        among = self.candidates(moment)
        count = moment.count if among is None else min(moment.count, int(among.sum()))
        return moment.layout.top(self.saliency(moment), count, among)
