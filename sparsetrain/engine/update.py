"""How local gradients become one weight update: at every step, or as the difference of H local steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsetrain.collective.world import World
from sparsetrain.config.job import Outer
from sparsetrain.engine.checkpoint import fitting
from sparsetrain.gradient.exchange import GradientExchange


@dataclasses.dataclass(frozen=True)
class Updated:
    """`norm` of the gradient before clipping (nan when skipped); whether this step crossed ranks, or was skipped."""

    norm: float
    exchanged: bool
    skipped: bool = False


class Update(Protocol):
    """Turns the gradients in `.grad` into new weights. All ranks call `step` together, with the number of steps that it
    finishes and whether it is the last."""

    def step(self, step: int, last: bool) -> Updated: ...

    def listen(self, final: bool) -> None: ...

    def set_masks(self, masks: Mapping[str, Tensor]) -> None: ...

    def forget(self) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class EveryStep:
    """Exchange the gradients, clip their mean, take one optimizer step: the replicas never differ."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        exchange: GradientExchange,
        clip: float,
        world: World,
        pull: Callable[[int], None],
    ) -> None:
        self.pull = pull
        self.parameters = parameters
        self.optimizer = optimizer
        self.exchange = exchange
        self.clip = clip
        self.world = world
        self.final = False
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(functools.partial(self._finished, name))

    def listen(self, final: bool) -> None:
        """Say whether the backward that follows is the last one before `step`: buckets may leave while it runs."""
        self.final = final and self.exchange.streams

    def _finished(self, name: str, parameter: Tensor) -> None:
        if self.final and parameter.grad is not None:
            self.exchange.offer(name, parameter.grad)

    def step(self, step: int, last: bool) -> Updated:
        """Exchange, clip, step. A non-finite gradient on any rank skips the step on all."""
        means = self.exchange.aggregate({name: gradient(p) for name, p in self.parameters.items()})
        if means is None:
            return Updated(float("nan"), True, skipped=True)
        for name, parameter in self.parameters.items():
            parameter.grad = means[name].to(parameter.dtype)
        norm = torch.nn.utils.get_total_norm([means[name] for name in self.parameters]).reshape(1)
        # Rank 0's norm steers everyone: other processors may round a long sum differently.
        self.world.transport.broadcast(norm, "control")
        _clip(self.parameters, self.clip, norm)
        self.pull(step)
        self.optimizer.step()
        return Updated(float(norm), True)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Nothing of its own lives on masked coordinates."""

    def forget(self) -> None:
        """Nothing to forget."""

    def state(self) -> dict[str, Tensor]:
        """Return no tensors."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""


class LocalSteps:
    """H optimizer steps on each rank's own gradients, then the weight difference is exchanged (DiLoCo, SparseLoCo).

    The optimizer sees dense gradients, so AdamW's step does not shrink; what the sparsifier keeps back of the
    difference stays in the residual. Replicas are equal after each exchange.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        exchange: GradientExchange,
        clip: float,
        every: int,
        outer: Outer,
        mask_gradients: Callable[[], None],
        pull: Callable[[int], None],
    ) -> None:
        self.pull = pull
        self.parameters = parameters
        self.optimizer = optimizer
        self.exchange = exchange
        self.clip = clip
        self.every = every
        self.outer = outer
        self.mask_gradients = mask_gradients
        self.since = 0
        self.anchor = {name: p.detach().clone() for name, p in parameters.items()}
        self.momentum = {name: torch.zeros_like(p) for name, p in self.anchor.items()} if outer.momentum else {}

    def listen(self, final: bool) -> None:
        """Nothing leaves before the local steps are done."""

    def step(self, step: int, last: bool) -> Updated:
        """Take a local step; at every H-th step and at the last one exchange the difference."""
        self.mask_gradients()
        gradients = [gradient(parameter) for parameter in self.parameters.values()]
        norm = torch.nn.utils.get_total_norm(gradients).reshape(1)
        finite = bool(torch.isfinite(norm))
        if finite:
            _clip(self.parameters, self.clip, norm)
            self.pull(step)
            self.optimizer.step()
        self.since += 1
        if self.since < self.every and not last:
            return Updated(float(norm), False, skipped=not finite)
        self.since = 0
        return Updated(float(norm), True, skipped=not self._exchange() or not finite)

    @torch.no_grad()
    def _exchange(self) -> bool:
        """Move all replicas to anchor - outer step of the mean difference; False when a rank's was not finite."""
        means = self.exchange.aggregate({name: self.anchor[name] - p for name, p in self.parameters.items()})
        for name, parameter in self.parameters.items():
            anchor = self.anchor[name]
            if means is not None:
                anchor.sub_(self._direction(name, means[name]), alpha=self.outer.learning_rate)
            parameter.copy_(anchor)
        return means is not None

    def _direction(self, name: str, mean: Tensor) -> Tensor:
        if not self.outer.momentum:
            return mean
        momentum = self.momentum[name].mul_(self.outer.momentum).add_(mean)
        return mean + self.outer.momentum * momentum if self.outer.nesterov else momentum

    @torch.no_grad()
    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Follow an update of the update sets: anchors take the new weights, outer momentum dies outside the masks."""
        for name, parameter in self.parameters.items():
            self.anchor[name].copy_(parameter)
        for name, mask in masks.items():
            if name in self.momentum:
                self.momentum[name].copy_(torch.where(mask, self.momentum[name], 0.0))

    @torch.no_grad()
    def forget(self) -> None:
        """Begin with the present weights as anchors, and without outer momentum."""
        self.set_masks({})
        for momentum in self.momentum.values():
            momentum.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the outer momentum by parameter name; checkpoints fall on exchanges, where anchor == weight."""
        return dict(self.momentum)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back the outer momentum and take the current weights as anchors."""
        for name, parameter in self.parameters.items():
            self.anchor[name].copy_(parameter)
            if name in self.momentum:
                self.momentum[name] = fitting(f"outer momentum of {name}", state[name], self.momentum[name])


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's gradient, zeros where the batch gave it none."""
    # A parameter that this batch did not use still has its place in the layout.
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _clip(parameters: Mapping[str, nn.Parameter], limit: float, norm: Tensor) -> None:
    # Most of a run's gradients are within the limit, and a factor of 1 would be a pass over all of them.
    if limit and float(norm) >= limit:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), limit, norm.squeeze(0))
