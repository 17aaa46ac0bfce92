"""Deep rewiring (Bellec, Kappel, Maass, Legenstein, ICLR 2018)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import NotNegative
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import MaskMethod, Moment
from sparsetrain.masks.present import Present
from sparsetrain.masks.sources import Tensors, Values


class DeepR(MaskMethod):
    """Every weight has a fixed sign; one that has crossed zero by the update goes dormant and a random other begins
    from zero, so the number stays. Active weights are pulled to zero and shaken. Needs nothing on the wire: the noise
    is keyed by seed, tensor and step.

    The signs are those of the first weights, drawn for all places before any is masked. The paper checks them in every
    step (masks.every: 1).
    """

    structures = ("unstructured", "n:m", "fan_in")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`penalty` is the paper's alpha; `noise` is the standard deviation of what is added to the gradient. The
        paper's temperature T, in steps of w by sqrt(2 eta T), is eta noise^2 / 2 for SGD at learning rate eta."""

        penalty: NotNegative = 1e-5
        noise: NotNegative = 1e-3

    def begin(self, weights: Tensors) -> None:
        """Take the signs of the first weights; zeros count as positive."""
        self.positive = MaskSet({name: weight >= 0 for name, weight in weights.items()})

    def update(self, moment: Moment) -> Tensor:
        """Return what is on its side of zero, the largest |w| where the count falls, and random others; what has just
        crossed comes back only where nothing else is left."""
        layout, quota = moment.layout, moment.layout.quota(moment.count)
        active, crossed = layout.active(moment.mask), layout.active(self._crossed(moment.name, moment.weight))
        lots = layout.pool(torch.rand(moment.mask.shape, generator=moment.generator)) - active.double()
        if quota < int(active[0].sum()):  # what has crossed goes first
            worth = torch.where(crossed, -1.0, layout.pool(moment.weight.abs()))
            active = layout.choose(worth, quota, among=active)
        kept = active & ~crossed
        return layout.expand(layout.fill(kept, lots, quota)).to(moment.mask.device)

    def settle(self, old: MaskSet, new: MaskSet, weights: Values, signal: Values) -> Tensors:
        """Return zeros for weights that have crossed and come back all the same."""
        crossed = {name: self._crossed(name, weights[name]) for name in new.masks}
        back = {name: crossed[name] & old.masks[name] & mask for name, mask in new.masks.items()}
        return {name: torch.where(place, 0.0, weights[name]) for name, place in back.items() if place.any()}

    def pull(self, present: Present) -> Tensor | None:
        """Return alpha x sign + noise on the active weights."""
        positive = self.positive.masks[present.name]
        force = torch.where(positive, self.config.penalty, -self.config.penalty)
        if self.config.noise:
            draw = torch.randn(present.weight.shape, generator=present.generator())
            force = force + self.config.noise * draw.to(force.device)
        return torch.where(present.update, force.to(present.weight.dtype), 0.0)

    def state(self) -> Tensors:
        """Return the signs as bits."""
        return self.positive.packed()

    def load_state(self, state: Tensors) -> None:
        """See MaskMethod."""
        self.positive = MaskSet.from_packed(state, self.positive.masks, 0)

    def _crossed(self, name: str, weight: Tensor) -> Tensor:
        """Return which weights are on the wrong side of zero."""
        return torch.where(self.positive.masks[name], weight < 0, weight > 0)
