"""Where a method's scores come from: what is watched at which steps, and what crosses ranks for it.

All figures are means over ranks of unscaled, unmasked gradients that are averaged over accumulation: |mean g|, never
mean |g|, or the choice would depend on the number of ranks.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsetrain.masks.layout import Layout
from sparsetrain.masks.lazy import Lazy
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.schedule import Span
from sparsetrain.masks.thin import Thin

Tensors = dict[str, Tensor]
Values = Mapping[str, Tensor]  # the same where tensors may be made one at a time
Rooms = Callable[[int], Mapping[str, int]]  # a step -> how many weights tensors hold at most after its update
Layouts = Mapping[str, Layout]
Mean = Callable[[Mapping[str, Tensor]], Tensors]  # local tensors by name -> their means over ranks; collective
# (local values of all tensors in the order of their layouts, ascending places that this rank proposes, each layout with
# the units a group whose means are wanted) -> (places, the mean values there); collective
SparseMean = Callable[[Tensor, Tensor, Sequence[tuple[Layout, int]]], tuple[Tensor, Tensor]]


def alone(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the means over a single rank; copies, because gradients are clipped in place later."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def alone_at(values: Tensor, places: Tensor, wanted: object) -> tuple[Tensor, Tensor]:
    """Return a single rank's own places and values."""
    return places, values[places]


@dataclasses.dataclass(frozen=True)
class Means:
    """How figures cross ranks: whole tensors, or the places that promise most."""

    dense: Mean
    sparse: SparseMean


class Source(abc.ABC):
    """Watches gradients for one run and hands a method its signal at updates.

    `method` computes contributions; `updates` are the steps at which masks change; `means` cross ranks.
    """

    rooms: Rooms | None = None  # where only the largest values of each tensor matter, as many as it has room for
    wire: ClassVar[str]  # bytes that a rank gives for one update, in words, N being the masked weights
    dense: ClassVar[bool] = True  # whether what it watches are the gradients of all weights

    def __init__(
        self, method: Any, updates: list[int], means: Means, layouts: Mapping[str, Layout], span: Span
    ) -> None:
        self.method = method
        self.updates = updates
        self.due = frozenset(updates)
        self.mean = means.dense
        self.means = means
        self.layouts = layouts
        self.span = span
        self.kept: Tensors = {}
        self.thin: dict[str, Thin] = {}

    @abc.abstractmethod
    def watches(self, step: int) -> bool:
        """Return whether the gradients of the step that makes `step` finished ones are wanted."""

    @abc.abstractmethod
    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """Look at the local gradients of a step. Collective where the source says that something crosses ranks."""

    @abc.abstractmethod
    def take(self) -> Values | None:
        """Return the signal by name, equal on all ranks, or None when it is not finite. Collective likewise."""

    def state(self) -> Tensors:
        """Return what this rank keeps between updates, and between an observation and its update."""
        return dict(self.kept)

    def newcomer(self, state: Mapping[str, Tensor]) -> Tensors:
        """Return what a rank keeps that joins, from the `state` of one that was there: the same, as it is a mean."""
        return dict(state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""
        self.kept = dict(state)


class Replicated(Source):
    """Weights alone, which all ranks hold: nothing crosses."""

    wire = "0"

    def watches(self, step: int) -> bool:
        """See Source."""
        return False

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source."""

    def take(self) -> Values | None:
        """Return nothing to look at."""
        return {}


class MeanGradient(Source):
    """The mean gradient of an update's own step: one dense all-reduce an update."""

    wire = "2 x 4N (P-1)/P"

    def watches(self, step: int) -> bool:
        """See Source."""
        return step in self.due

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source. Collective."""
        rooms = self.rooms(step) if self.rooms is not None else {}
        self.kept, self.thin = {}, {}
        # Tensor by tensor: a mean and what it is made of need not be there all at once.
        for name in gradients:
            mean = self.mean({name: gradients[name]})[name]
            if name in rooms:
                self.thin[name] = Thin.of(mean, max(1, rooms[name]))
            else:
                self.kept[name] = mean

    def take(self) -> Values | None:
        """See Source."""
        kept, thin = self.kept, self.thin
        self.kept, self.thin = {}, {}
        if not finite(kept) or not all(each.finite for each in thin.values()):
            return None
        return Lazy([*kept, *thin], lambda name: thin[name].dense() if name in thin else kept[name])

    def state(self) -> Tensors:
        """See Source."""
        return {**self.kept, **{name: each.dense() for name, each in self.thin.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See Source."""
        super().load_state(state)
        self.thin = {}


class ActiveGradient(MeanGradient):
    """The mean gradient of an update's own step inside the forward set only, zero elsewhere."""

    wire = "2 x 4dN (P-1)/P"
    dense = False

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source. Collective."""
        means = self.mean({name: gradient[masks.masks[name]] for name, gradient in gradients.items()})
        self.kept = {}
        for name, gradient in gradients.items():
            self.kept[name] = torch.zeros_like(gradient, dtype=torch.float32)
            self.kept[name][masks.masks[name]] = means[name]


class Accumulated(Source):
    """The sum over all steps so far of the method's contribution, which is linear in the gradient, or with a `decay`
    of the method below 1 its moving average: each rank adds up its own, and one dense all-reduce an update gives their
    mean. A rank leaves out a step whose gradient is not finite.
    """

    wire = "2 x 4N (P-1)/P"

    def watches(self, step: int) -> bool:
        """See Source."""
        return bool(self.updates) and step <= self.updates[-1]

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source."""
        self.kept = self.kept or {name: torch.zeros_like(gradients[name], dtype=torch.float32) for name in gradients}
        parts = {name: self.method.contribution(weights[name], gradient) for name, gradient in gradients.items()}
        if finite(parts):
            self.kept = {name: self.method.decay * self.kept[name] + part for name, part in parts.items()}

    def take(self) -> Values | None:
        """See Source. Collective."""
        return self.mean(self.kept) if self.kept else None

    def newcomer(self, state: Mapping[str, Tensor]) -> Tensors:
        """See Source: sums begin at zero."""
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


class Windowed(Source):
    """Watches the method's `window` of steps up to an update: a dense all-reduce in each of those steps."""

    wire = "window x 2 x 4N (P-1)/P"

    def __init__(
        self, method: Any, updates: list[int], means: Means, layouts: Mapping[str, Layout], span: Span
    ) -> None:
        super().__init__(method, updates, means, layouts, span)
        window = method.config.window
        self.watched = frozenset(step for update in updates for step in range(update - window + 1, update + 1))

    def watches(self, step: int) -> bool:
        """See Source."""
        return step in self.watched


class Curvature(Windowed):
    """The mean of squared mean gradients over the window (the diagonal of the empirical Fisher matrix).

    Squares of means, not means of the ranks' squares: those would depend on the number of ranks.
    """

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source. Collective."""
        squares = {name: mean.square() for name, mean in self.mean(gradients).items()}
        if finite(squares):
            self.kept |= {name: self.kept.get(name, 0.0) + square for name, square in squares.items()}
            self.kept["count"] = self.kept.get("count", torch.zeros(1)) + 1

    def take(self) -> Values | None:
        """See Source."""
        total, self.kept = self.kept, {}
        count = total.pop("count", torch.zeros(1))
        return {name: part / count for name, part in total.items()} if count else None


class Gradients(Windowed):
    """The mean gradients of the window themselves, [steps, *shape] of each tensor: window x 4N bytes of memory."""

    def observe(self, step: int, weights: Values, gradients: Values, masks: MaskSet) -> None:
        """See Source. Collective."""
        means = self.mean(gradients)
        if finite(means):
            self.kept |= {f"{step:010d}/{name}": mean.float() for name, mean in means.items()}

    def take(self) -> Values | None:
        """See Source."""
        kept, self.kept = self.kept, {}
        names = dict.fromkeys(key.partition("/")[2] for key in kept)
        found = {name: [kept[key] for key in sorted(kept) if key.partition("/")[2] == name] for name in names}
        return {name: torch.stack(parts) for name, parts in found.items()} if kept else None


def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether all values of all tensors are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
