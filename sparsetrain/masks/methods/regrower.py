"""Methods that drop some active weights and grow as many others."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from sparsetrain.masks.layout import Layout
from sparsetrain.masks.methods.base import MaskMethod, Moment
from sparsetrain.masks.select import top


class Regrower(MaskMethod):
    """Drops the active weights of least saliency and grows where `growth` is highest; the number stays."""

    def drop_fraction(self, progress: float) -> float:
        """Return the share of active weights to drop, alpha / 2 (1 + cos(pi progress)) (RigL, equation 1)."""
        return cosine_drop(self.config.drop_fraction, progress)

    @abc.abstractmethod
    def growth(self, moment: Moment) -> Tensor:
        """Return how much each weight is worth growing, the more the higher."""

    def update(self, moment: Moment) -> Tensor:
        """Return the next mask; growth is among all weights not kept, the just-dropped too."""
        fraction = self.drop_fraction(moment.progress)
        return drop_and_grow(
            moment.layout, moment.mask, self.saliency(moment), self.growth(moment), fraction, moment.count
        )


def cosine_drop(alpha: float, progress: float) -> float:
    """Return the share of active weights to drop, alpha / 2 (1 + cos(pi progress)) (RigL, equation 1)."""
    return alpha / 2.0 * (1.0 + math.cos(math.pi * progress))


def drop_and_grow(layout: Layout, mask: Tensor, keep: Tensor, grow: Tensor, fraction: float, count: int) -> Tensor:
    """Return the mask that keeps the best (1 - fraction) of the active by `keep` and grows by `grow` up to `count`.

    A weight just dropped may come back, and then keeps its value (RigL). Dropping is by rank over the whole tensor;
    growing fills each group of the layout up to its share.
    """
    kept = keep_best(layout, mask, keep, fraction, count)
    return layout.expand(layout.fill(kept, layout.pool(grow), layout.quota(count))).to(mask.device)


def keep_best(layout: Layout, mask: Tensor, keep: Tensor, fraction: float, count: int) -> Tensor:
    """Return the units, bool [groups, units], that stay when `fraction` of the active ones are dropped."""
    active, scores = layout.active(mask), layout.pool(keep)
    room = torch.minimum(active.sum(1), torch.tensor(layout.quota(count)))
    fitting = layout.choose(scores, room, among=active)
    units = int(active.sum())
    stay = min(int(fitting.sum()), units - int(fraction * units))
    return top(scores, stay, among=fitting)
