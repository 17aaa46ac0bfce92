"""What a mask method declares and does."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsetrain.masks.layout import Layout
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.present import Present
from sparsetrain.masks.sources import Replicated, Source, Tensors, Values


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a method may look at in one tensor when it chooses the next mask; equal on all ranks.

    `mask` is the present forward set; `weights`, and the `signals` of the method's source, are of all tensors. `count`
    is the number of weights to be active, a whole number of the layout's units; `update_count` the same for the update
    set, `budget` what the schedule allows in the end, less than `count` where the method grows above it for a while.
    `progress` is the share of the schedule's span that is over, `last` says that no update follows; `generator` is
    keyed by seed, tensor and mask epoch.
    """

    name: str
    weights: Mapping[str, Tensor]
    mask: Tensor
    layout: Layout
    count: int
    update_count: int
    budget: int
    progress: float
    generator: torch.Generator
    signals: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    last: bool = False

    @property
    def weight(self) -> Tensor:
        """Return the present weights; they may be made anew each time."""
        return self.weights[self.name]

    @property
    def signal(self) -> Tensor | None:
        """Return what the source gave for this tensor, None where it gives nothing."""
        return self.signals.get(self.name)

    def given(self) -> Tensor:
        """Return the signal. Raises ValueError where the source has given none."""
        signal = self.signal
        if signal is None:
            raise ValueError("this method needs the signal of its source")
        return signal


class MaskMethod(abc.ABC):
    """A rule that says which weights of a tensor are in its two sets next.

    The forward set is what the forward pass multiplies with; the update set gets gradients, travels in the exchange
    and holds the forward set. Weights outside the update set are zero.
    """

    source: type[Source] = Replicated  # where scores come from, and what that costs on the wire
    schedule: ClassVar[str] = "constant"  # when masks change, where the job does not say
    changes: ClassVar[bool] = True  # False: the first mask stays
    at_init: ClassVar[bool] = False  # True: an AtInit, whose mask is chosen before the first step
    starts_dense: ClassVar[bool] = False
    grows_largest: ClassVar[bool] = False  # True: of its signal only the largest magnitudes of a tensor matter
    grows: ClassVar[bool] = True  # False: what is pruned stays pruned, so no schedule's sparsity may fall
    ranks_globally: ClassVar[bool] = False  # True: `saliency` may be compared across tensors
    structures: ClassVar[tuple[str, ...]] = ()  # the only ones that the rule makes sense for; none named: all
    # True: the rule lives on gradients of weights outside the forward set, which a removed neuron or head has not.
    needs_masked_gradients: ClassVar[bool] = False
    keeps_dormant: ClassVar[bool] = False  # True: weights that leave the update set come back with their value
    rewinds: ClassVar[bool] = (
        False  # True: all weights go back to an early step at every update, which the schedule names
    )
    learns_budget: ClassVar[bool] = False  # True: a Learned, whose own parameters say what each tensor keeps
    decay: float = 1.0  # what a step leaves of the sums of the source Accumulated

    def __init__(self, config: Any) -> None:
        self.config = config

    def initial(self, moment: Moment) -> Tensor:
        """Return the first mask of a tensor: random units, or all where the method starts dense."""
        if self.starts_dense:
            return torch.ones_like(moment.weight, dtype=torch.bool)
        return moment.layout.random(moment.count, moment.generator).to(moment.weight.device)

    @abc.abstractmethod
    def update(self, moment: Moment) -> Tensor:
        """Return the next forward set of a tensor, with exactly `moment.count` weights."""

    def update_set(self, moment: Moment, mask: Tensor) -> Tensor:
        """Return the update set that goes with a forward set: the same one here."""
        return mask

    def update_sparsity(self, sparsity: float) -> float:
        """Return the sparsity of the update set when the forward set has `sparsity`."""
        return sparsity

    def above(self, sparsity: float, progress: float) -> float:
        """Return the sparsity of the forward set until the next update, where the schedule says `sparsity`; lower
        only where a method grows above the budget. The last update keeps to the schedule."""
        return sparsity

    def saliency(self, moment: Moment) -> Tensor:
        """Return how much each weight is worth keeping, the more the higher."""
        return moment.weight.abs()

    def candidates(self, moment: Moment) -> Tensor | None:
        """Return the weights among which the next forward set is chosen by saliency; None: all."""
        return moment.mask

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return what a step's local gradient adds to the signal of the source Accumulated: linear in the gradient."""
        return gradient

    def allocate(self, moments: Mapping[str, Moment], counts: dict[str, int]) -> dict[str, int]:
        """Return the weights to be active in each tensor; `counts` are the distribution's, whose sum must stay.

        Tensors with a rule of their own are not among them.
        """
        return counts

    def pull(self, present: Present) -> Tensor | None:
        """Return what is added to the mean gradient because of the weights alone, or None. It never travels."""
        return None

    def begin(self, weights: Tensors) -> None:
        """Look at the first weights by name, before any is masked."""
        return

    def settle(self, old: MaskSet, new: MaskSet, weights: Values, signal: Values) -> Tensors:
        """Return the weights, by name, that take other values at an update on which all ranks have agreed.

        Called once an update, before the weights follow the masks: what the method learns from it, it learns here.
        """
        return {}

    def state(self) -> Tensors:
        """Return what the method has learned, equal on all ranks; it belongs into the checkpoint."""
        return {}

    def load_state(self, state: Tensors) -> None:
        """Put back what `state` returned. Raises LookupError or ValueError where it does not fit."""
        return

    def forgets(self, old_sparsity: float, new_sparsity: float) -> bool:
        """Return whether first moments begin anew everywhere at an update between these sparsities."""
        return False
