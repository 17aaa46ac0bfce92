"""What a method and a regulariser add to the mean gradients because of the weights alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsetrain.masks.chooser import Chooser
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import MaskMethod
from sparsetrain.masks.present import Present
from sparsetrain.masks.regularisers.base import Regulariser


class Forces:
    """Adds the pulls of both to the gradients of the masked weights; equal on all ranks where weights are."""

    def __init__(self, method: MaskMethod, regulariser: Regulariser | None, chooser: Chooser) -> None:
        self.method, self.regulariser, self.chooser = method, regulariser, chooser
        self.parameters = chooser.parameters

    def add(self, masks: MaskSet, step: int) -> None:
        """Add them in the step that makes `step` finished ones, inside the update sets."""
        presents = self._presents(masks, step)
        self._add(masks, {name: self.method.pull(present) for name, present in presents.items()})
        if self.regulariser is None:
            return
        if not self.regulariser.takes_units:
            self._add(masks, {name: self.regulariser.pull(present) for name, present in presents.items()})
            return
        forces = {name: self.regulariser.pull(subject) for name, subject in self._subjects(masks, step).items()}
        self._add(masks, self.chooser.view.add(forces))

    def _presents(self, masks: MaskSet, step: int) -> dict[str, Present]:
        return {
            name: Present(name, weight.detach(), masks.masks[name], masks.update(name), self.chooser.seed, step)
            for name, weight in self.parameters.items()
        }

    def _subjects(self, masks: MaskSet, step: int) -> dict[str, Present]:
        view = self.chooser.view
        weights = view.gather({name: weight.detach() for name, weight in self.parameters.items()})
        forward, updates = view.masks(masks.masks), view.masks({n: masks.update(n) for n in self.parameters})
        return {
            name: Present(name, weights[name], forward[name], updates[name], self.chooser.seed, step, layout)
            for name, layout in view.layouts.items()
        }

    def _add(self, masks: MaskSet, forces: Mapping[str, Tensor | None]) -> None:
        for name, force in forces.items():
            gradient = self.parameters[name].grad
            if force is not None and gradient is not None:
                gradient.add_(force.where(masks.update(name), 0.0))
