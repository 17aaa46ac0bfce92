"""WoodFisher (Singh and Alistarh, NeurIPS 2020): optimal brain surgeon with an empirical Fisher matrix in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from sparsetrain.config.numbers import Above0, Few
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.pruner import Pruner
from sparsetrain.masks.sources import Gradients, Tensors, Values

AT_ONCE = 1 << 22  # numbers of inverse matrices in memory at a time


class WoodFisher(Pruner):
    """Gradual pruning by w_i^2 / (2 [H^-1]_ii), the loss that a weight's removal costs when the others make up for it,
    which at the update they do. H is damping x 1 + the mean of g g^T over the last steps' mean gradients, in blocks of
    neighbours in a tensor; weights that are inactive have no part in it.
    """

    source = Gradients
    structures = ("unstructured", "n:m", "block", "row", "fan_in")  # blocks of H are of one tensor's neighbours
    schedule = "cubic"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`window` is the number of mean gradients; `block` the weights of a matrix; `damping` is lambda."""

        window: Few = 16
        block: Few = 64
        damping: Above0 = 1e-4

    def saliency(self, moment: Moment) -> Tensor:
        """Return w^2 / (2 [H^-1]_ii), float64."""
        parts = []
        for weight, _, inverse in self._blocks(moment.weight, moment.mask, moment.mask, moment.given()):
            parts.append(weight.square() / (2.0 * inverse.diagonal(dim1=1, dim2=2)))
        return _whole(parts, moment.weight)

    def settle(self, old: MaskSet, new: MaskSet, weights: Values, signal: Values) -> Tensors:
        """Return the weights with what optimal brain surgeon adds to those that stay: of all changes that make the
        removed ones zero, the one of least loss to second order, taken jointly in each block."""
        changed = {}
        for name, mask in new.masks.items():
            removed = old.masks[name] & ~mask
            if not removed.any():
                continue
            parts = []
            for weight, gone, inverse in self._blocks(weights[name], old.masks[name], removed, signal[name]):
                both = gone.unsqueeze(2) & gone.unsqueeze(1)
                identity = torch.eye(inverse.shape[1], dtype=torch.float64).expand_as(inverse)
                lost = torch.where(gone, weight, 0.0)
                multiplier = torch.linalg.solve(torch.where(both, inverse, identity), lost)
                parts.append(weight - (inverse * multiplier.unsqueeze(1)).sum(2))
            changed[name] = torch.where(mask, _whole(parts, weights[name]).to(weights[name].dtype), 0.0)
        return changed

    def _blocks(
        self, weight: Tensor, mask: Tensor, places: Tensor, gradients: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield weights [n, block], `places` there and H^-1 [n, block, block], some blocks at a time; the last block
        is filled up with zeros."""
        size = min(self.config.block, weight.numel())
        active, count = torch.where(mask, gradients, 0.0).double().cpu(), len(gradients)
        flat = _rows(active.view(count, -1), size).view(count, -1, size).transpose(0, 1)
        rows = [_rows(tensor.cpu().reshape(1, -1), size).view(-1, size) for tensor in (weight.double(), places)]
        step = max(1, AT_ONCE // size**2)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            yield rows[0][part], rows[1][part], inverse_fisher(flat[part], self.config.damping)


def inverse_fisher(gradients: Tensor, damping: float) -> Tensor:
    """Return the inverse [n, c, c] of damping x 1 + (1 / m) sum of g g^T for gradients [n, m, c], float64, by one
    update of rank 1 a gradient (Sherman and Morrison)."""
    blocks, count, size = gradients.shape
    inverse = (torch.eye(size, dtype=torch.float64) / damping).repeat(blocks, 1, 1)
    for gradient in gradients.unbind(1):
        product = (inverse * gradient.unsqueeze(1)).sum(2)
        scale = count + (gradient * product).sum(1)
        inverse -= product.unsqueeze(2) * (product / scale.unsqueeze(1)).unsqueeze(1)
    return inverse


def _rows(flat: Tensor, size: int) -> Tensor:
    """Return [m, n] with zeros appended so that `size` divides n."""
    return torch.nn.functional.pad(flat, (0, -flat.shape[1] % size))


def _whole(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts).flatten()[: like.numel()].view(like.shape).to(like.device)
