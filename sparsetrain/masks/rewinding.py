"""Weights as they were at an early step, to which a run comes back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsetrain.masks.saved import fitting

STEP = "/step"  # no parameter is called so


class Rewinding:
    """Keeps a copy of all parameters from the moment that `step` steps are finished; equal on all ranks.

    Buffers are not among them: running statistics follow the weights by themselves.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        self.parameters = parameters
        self.step = step
        self.kept: dict[str, Tensor] = {}
        self.reached(0)

    def reached(self, step: int) -> None:
        """Take the copy if `step` finished steps are the ones."""
        if step == self.step:
            self.kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def rewind(self) -> None:
        """Put all parameters back. Raises ValueError where the step has not been reached."""
        if not self.kept:
            raise ValueError(f"no weights of step {self.step} to rewind to")
        for name, parameter in self.parameters.items():
            parameter.copy_(self.kept[name])

    def state(self) -> dict[str, Tensor]:
        """Return the step, and the copy by parameter name, which there is none of before the step."""
        return {STEP: torch.tensor([self.step]), **self.kept}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned. Raises ValueError when it does not fit the model or this step."""
        step = int(state[STEP]) if STEP in state else None
        if step != self.step:
            raise ValueError(f"it rewinds to step {step}, this job to step {self.step}: its length or rounds differ")
        kept = {name: tensor for name, tensor in state.items() if name != STEP}
        if kept or not self.step:
            kept = {name: fitting(f"rewind/{name}", kept.get(name), like) for name, like in self.parameters.items()}
        self.kept = kept
