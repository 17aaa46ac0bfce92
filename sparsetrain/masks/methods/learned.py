"""Methods that learn how many weights each tensor keeps."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.straight_through import StraightThrough
from sparsetrain.masks.saved import fitting
from sparsetrain.masks.sources import Tensors, Values


class Learned(StraightThrough):
    """Parameters of the method, one tensor of them beside each masked one, say in every step what the forward pass
    makes of the weights; they learn with the model, and a pull towards fewer weights, on all ranks alike, makes masks
    of it.

    `masks.sparsity` is what the last update gives exactly, and what the pull works for until then: it acts in those
    steps in which fewer weights are out than the schedule asks for by its next update. So the job's sparsity stays
    what it is for any other method, the strength of the pull need only be enough, and how the budget is shared over
    tensors is learned. Updates before the last only record what has been learned so far. The last takes the largest
    margins of all tensors together, as many as the budget holds; weights become what the forward pass made of them,
    and from then on the run trains a plain sparse model.
    """

    field: ClassVar[str]  # what the parameters are called: `field/tensor`

    learns_budget = True
    schedule = "cubic"
    structures = ("unstructured",)

    def begin(self, weights: Tensors) -> None:
        """Make the parameters; there are none for other methods."""
        self.learned = {name: nn.Parameter(self.first(weight)) for name, weight in weights.items()}

    @abc.abstractmethod
    def first(self, weight: Tensor) -> Tensor:
        """Return what a tensor's parameters begin with, fp32."""

    @abc.abstractmethod
    def effective(self, weight: Tensor, learned: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what the forward pass uses, differentiable in both; without a generator nothing is drawn."""

    @abc.abstractmethod
    def margin(self, weight: Tensor, learned: Tensor) -> Tensor:
        """Return by how much each weight is in, above 0, or out of the forward set; comparable across tensors."""

    @abc.abstractmethod
    def press(self, learned: nn.Parameter) -> None:
        """Pull a tensor's parameters towards fewer weights."""

    def initial(self, moment: Moment) -> Tensor:
        """Return what the first parameters leave in."""
        return self.saliency(moment) > 0

    def saliency(self, moment: Moment) -> Tensor:
        """Return the margins."""
        return self.margin(moment.weight, self.learned[moment.name].detach())

    def update(self, moment: Moment) -> Tensor:
        """Return what has been learned so far; of the last update the largest margins, `moment.count` of them."""
        return super().update(moment) if moment.last else self.initial(moment)

    def update_sparsity(self, sparsity: float) -> float:
        """Return that of the last update."""
        return sparsity

    def update_set(self, moment: Moment, mask: Tensor) -> Tensor:
        """Return all weights, after the last update those of the mask."""
        return mask if moment.last else torch.ones_like(mask)

    def settle(self, old: MaskSet, new: MaskSet, weights: Values, signal: Values) -> Tensors:
        """Return, at the last update, what the forward pass makes of the weights."""
        if not new.limits:
            return {}
        return {name: self.effective(weights[name], self.learned[name].detach(), None) for name in new.masks}

    def out(self, weights: Tensors) -> float:
        """Return the share of all weights that is out of the forward set now."""
        kept = sum(int((self.margin(weights[name], each.detach()) > 0).sum()) for name, each in self.learned.items())
        return 1.0 - kept / sum(math.prod(weights[name].shape) for name in self.learned)

    def state(self) -> Tensors:
        """Return the parameters as `field/tensor`."""
        return {f"{self.field}/{name}": each.detach() for name, each in self.learned.items()}

    def load_state(self, state: Tensors) -> None:
        """See MaskMethod."""
        with torch.no_grad():
            for key, own in self.state().items():
                own.copy_(fitting(f"method/{key}", state.get(key), own))
