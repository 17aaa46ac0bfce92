"""What a masked tensor holds when the optimizer is about to step."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.layout import Layout


@dataclasses.dataclass(frozen=True)
class Present:
    """A tensor by its `name`, its weights, both sets and layout at the step that makes `step` finished ones."""

    name: str
    weight: Tensor
    mask: Tensor
    update: Tensor
    layout: Layout
    seed: int
    step: int

    def generator(self) -> torch.Generator:
        """Return a generator keyed by seed, tensor and step: all ranks draw alike, and so does a run that resumes."""
        return generator_for(self.seed, f"{self.name}/step", self.step)
