"""One ranking of all tensors' weights: each keeps what its scores are worth."""

from __future__ import annotations

import dataclasses
import math

import torch

from sparsetrain.masks.distribution import Distribution, Ranked, Shapes


class Global(Distribution):
    """The most salient units of all tensors together; a tensor may end up empty, less so with `normalise`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`normalise` divides each tensor's scores by their 2-norm, so that no tensor wins by its scale."""

        normalise: bool = False

    def counts(self, shapes: Shapes, sparsity: float, ranked: Ranked) -> dict[str, int]:
        """See Distribution. Equal scores go to the earlier tensor, then to the lower unit."""
        budget = round((1.0 - sparsity) * sum(math.prod(shape) for shape in shapes.values()))
        scores, sizes, owners = [], [], []
        for number, (unit_scores, size) in enumerate((units := ranked()).values()):
            norm = float(unit_scores.norm()) if self.config.normalise else 1.0
            scores.append(unit_scores / norm if norm > 0 else unit_scores)
            sizes.append(torch.full((unit_scores.numel(),), size))
            owners.append(torch.full((unit_scores.numel(),), number))
        if any(bool(torch.isnan(each).any()) for each in scores):
            raise ValueError("a score is not a number")
        order = torch.sort(torch.cat(scores), descending=True, stable=True).indices
        size = torch.cat(sizes)[order]
        kept = torch.cat(owners)[order][size.cumsum(0) <= budget]
        taken = torch.bincount(kept, minlength=len(units)).tolist()
        return {name: taken[number] * units[name][1] for number, name in enumerate(units)}
