"""SRigL: dynamic sparse training with constant fan-in (Lasby et al., ICLR 2024)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import Fraction
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.select import best
from sparsetrain.masks.sources import MeanGradient


class SRigL(Regrower):
    """RigL with constant fan-in: neurons that few salient weights want are ablated, the others share what they leave.
    One dense mean gradient per update."""

    source = MeanGradient
    structures = ("fan_in",)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` as in RigL. A neuron stays while its salient weights, those kept by |w| or wanted by
        |mean gradient|, are at least `gamma` times the fan-in."""

        drop_fraction: Fraction = 0.3
        gamma: Fraction = 0.3

    def growth(self, moment: Moment) -> Tensor:
        """Return |mean gradient|."""
        return moment.given().abs()

    def update(self, moment: Moment) -> Tensor:
        """Return the next mask: `count` weights, equally many in each neuron that is left, none in the others.

        Where the neurons cannot share the budget equally, what is left over by less than one weight each is not spent.
        """
        layout, fraction = moment.layout, self.drop_fraction(moment.progress)
        active = layout.active(moment.mask)
        keep, grow = layout.pool(self.saliency(moment)), layout.pool(self.growth(moment))
        units = int(active.sum())
        stay = min(moment.count, units - int(fraction * units))
        kept = best(keep.view(1, -1), stay, among=active.view(1, -1)).view(active.shape)
        wanted = best(grow.view(1, -1), moment.count - stay, among=~kept.view(1, -1)).view(active.shape)
        least = self.config.gamma * moment.count / layout.groups
        alive = _alive((kept | wanted).sum(1), least, moment.count, layout.units)
        quota = torch.where(alive, moment.count // max(1, int(alive.sum())), 0)
        fitting = best(keep, torch.minimum(kept.sum(1), quota), among=kept)
        return layout.expand(fitting | best(grow, quota - fitting.sum(1), among=~fitting)).to(moment.mask.device)


def _alive(salient: Tensor, least: float, count: int, units: int) -> Tensor:
    """Return which neurons stay: those with enough salient weights, and as many others, the best first, as it takes
    for the budget to fit."""
    needed = -(-count // units)
    order = torch.sort(salient, descending=True, stable=True).indices
    alive = salient >= least
    alive[order[:needed]] = True
    return alive
