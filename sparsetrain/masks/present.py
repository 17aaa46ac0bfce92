"""What a masked tensor holds when the optimizer is about to step."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.layout import Layout


@dataclasses.dataclass(frozen=True)
class Present:
    """A tensor by its `name`, its weights and both sets at the step that makes `step` finished ones.

    Where units matter it is a subject of the structure, a tensor or a coupling, with its `layout`.
    """

    name: str
    weight: Tensor
    mask: Tensor
    update: Tensor
    seed: int
    step: int
    layout: Layout | None = None

    def generator(self) -> torch.Generator:
        """Return a generator keyed by seed, tensor and step: all ranks draw alike, and so does a run that resumes."""
        return generator_for(self.seed, f"{self.name}/step", self.step)
