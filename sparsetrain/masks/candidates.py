"""Growth scores from candidates only, instead of a dense mean gradient."""

from __future__ import annotations

import math

import torch

from sparsetrain.kernels import index_code
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.select import best
from sparsetrain.masks.sources import MeanGradient, Values

ASKED = 1.5  # times as many means as weights to grow, at least
PROPOSED = 4  # times as many proposals as means, at least
DENSE = 8  # bytes a weight of a dense mean, of which each of P ranks sends (P - 1) / P; so it is with all else here


class Candidates(MeanGradient):
    """The mean gradient at the places that promise most, zero elsewhere.

    Each rank proposes the inactive places of its largest |local gradient|; where the sums of what was proposed are
    largest, whole means are asked for. As many places as the method's `share` of a dense mean's bytes pays for are
    proposed, shared among tensors in proportion to what each is to grow. Sums of proposals alone would miss more, as
    they lack the ranks that did not propose a place.

    What is grown depends on how the batch is dealt to the ranks, as the proposals do. A weight dropped at this update
    was no candidate and grows again only where an owner asks for more places than were proposed.
    """

    wire = "share x 2 x 4N (P-1)/P"

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source. Collective."""
        fraction = self.method.drop_fraction(self.span.fraction(step))
        grown = {name: int(fraction * count) for name, count in masks.counts().items()}
        sizes = {name: mask.numel() for name, mask in masks.masks.items()}
        proposals, means = affordable(sum(grown.values()), sum(sizes.values()), self.method.config.share)
        total = max(1, sum(grown.values()))
        chosen, wanted, flat = [], [], []
        for name, mask in masks.masks.items():
            layout, share = self.layouts[name], grown[name] / total
            wanted.append((layout, _units(layout, means * share)))
            units = layout.arranged(gradients[name].detach()).float()
            chosen.append(_largest(layout, units, ~mask, _units(layout, proposals * share)))
            flat.append(units.flatten())
        places, values = self.means.sparse(torch.cat(flat), torch.nonzero(torch.cat(chosen)).flatten(), wanted)
        dense = torch.zeros(sum(sizes.values()))
        dense[places] = values
        parts = zip(masks.masks.items(), dense.split(list(sizes.values())), strict=True)
        self.kept = {name: self.layouts[name].restored(part).to(mask.device) for (name, mask), part in parts}


def affordable(grown: int, size: int, share: float) -> tuple[int, int]:
    """Return how many places each rank may propose and how many means may be asked for, when `grown` of `size` weights
    are to grow, so that it all takes at most `share` of a dense mean's bytes; at least `grown` of both.

    Whole numbers throughout: processors that round differently must ask for equally many.
    """
    least = math.ceil(ASKED * grown)
    low, high = grown, size
    while low < high:
        middle = (low + high + 1) // 2
        if _bytes(middle, max(least, middle // PROPOSED), size) <= share * DENSE * size:
            low = middle
        else:
            high = middle - 1
    return low, min(size, max(least, low // PROPOSED))


def _bytes(proposals: int, means: int, size: int) -> int:
    """Return what proposals (place and value) and means (place, value, mean) take, as if a rank sent all to one."""
    places = min(index_code.elias_fano_bytes(proposals, size), index_code.bitmap_bytes(size))
    return places + proposals + index_code.elias_fano_bytes(means, size) + 2 * means


def _units(layout: Layout, weights: float) -> int:
    """Return how many units of each group make about so many weights; one at least where there are any."""
    return min(layout.units, max(1, round(weights / (layout.groups * layout.size)))) if weights else 0


def _largest(layout: Layout, values: torch.Tensor, inactive: torch.Tensor, quota: int) -> torch.Tensor:
    """Return this rank's proposals of one tensor as flags in the order of its layout."""
    free = layout.active(inactive)
    # What is not a number goes first, so that all ranks come to know of it.
    scores = values.abs().nan_to_num(nan=math.inf, posinf=math.inf).double().mean(2)
    chosen = best(scores, torch.minimum(free.sum(1), torch.tensor(quota)), among=free)
    return chosen.unsqueeze(2).expand(values.shape).flatten()
