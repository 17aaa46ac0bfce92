"""Parameters of a mask method that learn beside the weights: how the forward pass sees both, and who pulls at them."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Generator, Mapping

import torch
from torch import Tensor, nn

from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.learned import Learned
from sparsetrain.masks.schedule import MaskSchedule


class Learning:
    """Stands beside the weights of a run whose method is a Learned; equal on all ranks. `final` is the job's sparsity.

    It is over when an update has closed the update sets, the schedule's last one.
    """

    def __init__(
        self, method: Learned, weights: Mapping[str, nn.Parameter], schedule: MaskSchedule, final: float, seed: int
    ) -> None:
        self.method, self.weights, self.schedule, self.final, self.seed = method, weights, schedule, final, seed
        self.updates = schedule.updates()
        self.parameters = {f"{method.field}/{name}": each for name, each in method.learned.items()}

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the parameters to an optimizer, as a group of their own without weight decay."""
        rate = optimizer.param_groups[0]["lr"] * self.method.config.rate
        optimizer.add_param_group({"params": list(self.parameters.values()), "lr": rate, "weight_decay": 0.0})

    def limits(self, masks: MaskSet) -> dict[str, Tensor]:
        """Return the update sets of the parameters: everything, and nothing when learning is over."""
        if not masks.limits:
            return {}
        return {name: torch.zeros_like(each, dtype=torch.bool) for name, each in self.parameters.items()}

    @contextlib.contextmanager
    def forward(self, step: int | None) -> Generator[None]:
        """Inside, weights are what the forward pass uses; afterwards they have their values back, and gradients are
        those of weights and parameters.

        Backward leaves the gradient of what the forward pass used; the chain rule goes the rest of the way, once for
        all that is inside. `step` draws what the step that makes `step` finished ones draws; None draws nothing.
        """
        leaves = {name: weight.detach().clone().requires_grad_() for name, weight in self.weights.items()}
        earlier = {name: weight.grad for name, weight in self.weights.items()}
        used = {}
        with torch.enable_grad():
            for name, leaf in leaves.items():
                draw = None if step is None else generator_for(self.seed, f"{name}/{self.method.field}", step)
                used[name] = self.method.effective(leaf, self.method.learned[name], draw)
        try:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(used[name])
                    weight.grad = None
            yield
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    self._follow(name, leaves[name], used[name], weight.grad)
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(leaves[name])
                    weight.grad = _sum(earlier[name], leaves[name].grad)

    def _follow(self, name: str, leaf: Tensor, used: Tensor, gradient: Tensor) -> None:
        torch.autograd.backward(used, gradient, inputs=[leaf, self.method.learned[name]])

    def pull(self, step: int) -> None:
        """Pull in the step that makes `step` finished ones, if fewer weights are out than the next update aims at."""
        place = bisect.bisect_left(self.updates, step)
        if place == len(self.updates):
            return
        aim = self.schedule.sparsity(self.final, self.updates[place])
        if self.method.out({name: weight.detach() for name, weight in self.weights.items()}) < aim:
            for each in self.parameters.values():
                self.method.press(each)

    def rest(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Let the optimizer forget the parameters: learning is over, and no momentum shall move them."""
        state = optimizer.state if optimizer is not None else {}
        for each in self.parameters.values():
            for value in state.get(each, {}).values():
                if torch.is_tensor(value) and value.shape == each.shape:
                    value.zero_()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other
