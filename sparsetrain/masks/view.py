"""How a model's parameters look to mask methods: tensor by tensor, or as couplings."""

from __future__ import annotations

import abc
from collections.abc import Mapping

from torch import Tensor

from sparsetrain.masks.layout import Layout
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.structures.base import Structure

Tensors = dict[str, Tensor]
Fresh = dict[str, tuple[Tensor, Tensor]]  # parameter -> (bool places, values), both of its shape


class View(abc.ABC):
    """Turns figures by parameter into figures by subject, and the masks chosen for subjects into those of parameters.

    `parameters` are masked, in model order; `layouts` are the subjects', by name. Pure: equal arguments give equal
    answers on all ranks.
    """

    parameters: list[str]
    layouts: dict[str, Layout]
    at_least_one_unit = False  # True: a subject without any unit would cut the model in two

    @abc.abstractmethod
    def gather(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return figures by subject from figures by parameter; empty where those are."""

    @abc.abstractmethod
    def masks(self, masks: Mapping[str, Tensor]) -> Tensors:
        """Return the masks of subjects that `scatter` made these masks of parameters from."""

    @abc.abstractmethod
    def scatter(self, chosen: Mapping[str, Tensor]) -> Tensors:
        """Return the masks of parameters, in model order, from those of subjects."""

    @abc.abstractmethod
    def add(self, figures: Mapping[str, Tensor]) -> Tensors:
        """Return figures by parameter from figures by subject: sums where several subjects hold a weight."""

    @abc.abstractmethod
    def inputs(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share of its inputs that is left to each parameter's outputs."""

    def fresh(self, old: MaskSet, new: MaskSet, weights: Mapping[str, Tensor], seed: int) -> Fresh:
        """Return what grown weights begin with where that is not 0; `weights` are those before the transition."""
        return {}

    def units(self, masks: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return (kept units, all units) of all subjects."""
        found = [self.layouts[name].active(mask) for name, mask in self.masks(masks).items()]
        return sum(int(units.sum()) for units in found), sum(units.numel() for units in found)


class Single(View):
    """Every parameter is a subject of its own."""

    def __init__(self, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.parameters = list(shapes)
        self.layouts = {name: structure.layout(name, shape) for name, shape in shapes.items()}

    def gather(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See View."""
        return tensors

    def masks(self, masks: Mapping[str, Tensor]) -> Tensors:
        """See View."""
        return dict(masks)

    def scatter(self, chosen: Mapping[str, Tensor]) -> Tensors:
        """See View."""
        return dict(chosen)

    def add(self, figures: Mapping[str, Tensor]) -> Tensors:
        """See View."""
        return dict(figures)

    def inputs(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the density of each mask."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
