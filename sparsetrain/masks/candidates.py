"""Growth scores from candidates only, instead of a dense mean gradient."""

from __future__ import annotations

import math

import torch

from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.select import best
from sparsetrain.masks.sources import MeanGradient, Tensors


class Candidates(MeanGradient):
    """The mean gradient at places that some rank proposes, zero elsewhere: each rank names its `oversampling` x g
    inactive places of largest |local gradient|, g being what the tensor is to grow; then values are averaged over the
    union. One round alone, in which each place's mean lacks the ranks that did not name it, would miss more.

    What is grown depends on how the batch is dealt to the ranks, as the union does.
    """

    wire = "places of oversampling x g weights, then 2 x 2 (P-1)/P bytes for each place of the union"

    def observe(self, step: int, weights: Tensors, gradients: Tensors, masks: MaskSet) -> None:
        """See Source. Collective."""
        fraction = self.method.drop_fraction(self.span.fraction(step))
        flat = torch.cat([gradients[name].detach().reshape(-1).float().cpu() for name in masks.masks])
        chosen = [self._chosen(name, gradients[name], masks, fraction) for name in masks.masks]
        places, values = self.means.sparse(flat, torch.nonzero(torch.cat(chosen)).flatten())
        dense = torch.zeros_like(flat)
        dense[places] = values
        sizes = [math.prod(mask.shape) for mask in masks.masks.values()]
        parts = zip(masks.masks.items(), dense.split(sizes), strict=True)
        self.kept = {name: part.view(mask.shape).to(mask.device) for (name, mask), part in parts}

    def _chosen(self, name: str, gradient: torch.Tensor, masks: MaskSet, fraction: float) -> torch.Tensor:
        """Return this rank's candidates of one tensor as a flat mask; all ranks choose equally many."""
        layout, inactive = self.layouts[name], ~masks.masks[name]
        active = masks.masks[name].numel() - int(inactive.sum())
        wanted = math.ceil(self.method.config.oversampling * fraction * active)
        each = layout.groups * layout.size
        free = layout.active(inactive)
        quota = min(math.ceil(wanted / each), int(free.sum(1).min()))
        # What is not a number goes first, so that the mean shows it to all ranks.
        scores = gradient.detach().float().abs().nan_to_num(nan=math.inf, posinf=math.inf)
        return layout.expand(best(layout.pool(scores), quota, among=free)).flatten()
