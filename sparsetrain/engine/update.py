"""How local gradients become one weight update: at every step, or as the difference of H local steps."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsetrain.collective.world import World
from sparsetrain.config.job import Outer
from sparsetrain.engine.assent import Assent
from sparsetrain.engine.checkpoint import fitting
from sparsetrain.engine.engine import Engine
from sparsetrain.engine.torch_engine import TorchEngine
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.masks.maskset import spread

SINCE = "since/"  # among a rank's own weights: local steps since the exchange, and whether one is due


@dataclasses.dataclass(frozen=True)
class Updated:
    """`norm` of the gradient before clipping (nan when skipped); whether this step crossed ranks, or was skipped."""

    norm: float
    exchanged: bool
    skipped: bool = False


class Update(Protocol):
    """Turns the gradients in `.grad` into new weights. All ranks call `step` together, with the number of steps that it
    finishes and whether it is the last.

    Between the arrival of an exchange and its effect all ranks say a word. Where that breaks off, `arrived` is what
    this rank has of it, and `finish` goes on from there, on this rank alone.
    """

    assent: Assent

    def step(self, step: int, last: bool) -> Updated: ...

    @property
    def arrived(self) -> Arrived | None: ...

    def finish(self, norm: float) -> Updated: ...

    def listen(self, final: bool) -> None: ...

    def set_masks(self, masks: Mapping[str, Tensor]) -> None: ...

    def forget(self) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...

    def leave_local(self) -> dict[str, Tensor]: ...

    def go_local(self, state: Mapping[str, Tensor]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Arrived:
    """An exchange that waits for the others' words: the step that it belongs to, the means (None: not finite), this
    rank's norm of them, and whether its own last gradient was finite."""

    step: int
    means: dict[str, Tensor] | None
    norm: float = float("nan")
    finite: bool = True


class EveryStep:
    """Exchange the gradients, clip their mean, take one optimizer step: the replicas never differ."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        engine: Engine,
        exchange: GradientExchange,
        world: World,
    ) -> None:
        self.parameters = parameters
        self.engine = engine
        self.exchange = exchange
        self.assent = Assent(world.transport)
        self.final = False
        self.waiting: Arrived | None = None
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
        self.waiting = None
        means = self.exchange.prepare({name: self.engine.gradient(name) for name in self.parameters})
        norm = float("nan")
        if means is not None:
            norm = float(torch.nn.utils.get_total_norm([means[name] for name in self.parameters]))
        self.waiting = Arrived(step, means, norm)
        # Rank 0's norm steers everyone: other processors may round a long sum differently.
        updated = self.finish(self.assent.gather(norm)[0].norm)
        self.exchange.plan()
        return updated

    @property
    def arrived(self) -> Arrived | None:
        """See Update."""
        return self.waiting

    def finish(self, norm: float) -> Updated:
        """See Update: commit, clip by `norm`, step."""
        assert self.waiting is not None
        waiting, self.waiting = self.waiting, None
        if waiting.means is None:
            self.engine.skip()
            return Updated(float("nan"), True, skipped=True)
        self.exchange.commit()
        began = time.perf_counter()
        self.engine.step(waiting.step, waiting.means, norm)
        if self.exchange.mark is not None:
            self.exchange.mark("optimizer", began, time.perf_counter())
        return Updated(norm, True)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Nothing of its own lives on masked coordinates."""

    def forget(self) -> None:
        """Nothing to forget."""

    def state(self) -> dict[str, Tensor]:
        """Return no tensors."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""

    def leave_local(self) -> dict[str, Tensor]:
        """Return no tensors: replicas never differ."""
        return {}

    def go_local(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""


class LocalSteps:
    """H optimizer steps on each rank's own gradients, then the weight difference is exchanged (DiLoCo, SparseLoCo).

    The optimizer sees dense gradients, so AdamW's step does not shrink; what the sparsifier keeps back of the
    difference stays in the residual. Replicas are equal after each exchange.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        engine: TorchEngine,
        exchange: GradientExchange,
        every: int,
        outer: Outer,
        world: World,
        mask_gradients: Callable[[], None],
        masks: Mapping[str, Tensor],
    ) -> None:
        self.parameters = parameters
        self.engine = engine
        self.exchange = exchange
        self.every = every
        self.outer = outer
        self.assent = Assent(world.transport)
        self.mask_gradients = mask_gradients
        self.since = 0
        self.due = False  # the local steps are done, the exchange is not
        self.left: dict[str, Tensor] = {}
        self.waiting: Arrived | None = None
        self.anchor = {name: p.detach().clone() for name, p in parameters.items()}
        self.momentum = {name: torch.zeros_like(p) for name, p in self.anchor.items()} if outer.momentum else {}
        self.masks = dict(masks)

    def listen(self, final: bool) -> None:
        """Nothing leaves before the local steps are done."""

    def step(self, step: int, last: bool) -> Updated:
        """Take a local step; at every H-th step and at the last one exchange the difference."""
        self.waiting = None
        self.mask_gradients()
        norm = float(torch.nn.utils.get_total_norm([self.engine.gradient(name) for name in self.parameters]))
        finite = math.isfinite(norm)
        if finite and not self.due:
            began = time.perf_counter()
            self.engine.local_step(step, norm)
            if self.exchange.mark is not None:
                self.exchange.mark("optimizer", began, time.perf_counter())
        self.since += not self.due
        self.due = self.since >= self.every or last
        if not self.due:
            return Updated(norm, False, skipped=not finite)
        with torch.no_grad():
            means = self.exchange.prepare({name: self.anchor[name] - p for name, p in self.parameters.items()})
        self.waiting = Arrived(step, means, norm, finite)
        self.assent.gather(norm)
        updated = self.finish(norm)
        self.exchange.plan()
        return updated

    @property
    def arrived(self) -> Arrived | None:
        """See Update."""
        return self.waiting

    @torch.no_grad()
    def finish(self, norm: float) -> Updated:
        """See Update: move all replicas to anchor - outer step of the mean difference, or back to the anchor where a
        rank's was not finite."""
        assert self.waiting is not None
        waiting, self.waiting = self.waiting, None
        self.since, self.due = 0, False
        if waiting.means is not None:
            self.exchange.commit()
        for name, parameter in self.parameters.items():
            anchor = self.anchor[name]
            if waiting.means is not None:
                mean = self.engine.shaped(name, waiting.means[name])
                anchor.sub_(self._direction(name, mean), alpha=self.outer.learning_rate)
            parameter.copy_(anchor)
        return Updated(norm, True, skipped=waiting.means is None or not waiting.finite)

    def _direction(self, name: str, mean: Tensor) -> Tensor:
        if not self.outer.momentum:
            return mean
        momentum = self.momentum[name].mul_(self.outer.momentum).add_(mean)
        return mean + self.outer.momentum * momentum if self.outer.nesterov else momentum

    @torch.no_grad()
    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Follow an update of the update sets: anchors take the new weights, outer momentum dies outside the masks."""
        self.anchor = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for name, momentum in self.momentum.items():
            self.momentum[name] = _followed(momentum, self.masks.get(name), masks.get(name), self.anchor[name])
        self.masks = dict(masks)

    @torch.no_grad()
    def forget(self) -> None:
        """Begin with the present weights as anchors, and without outer momentum."""
        self.anchor = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.momentum = {name: torch.zeros_like(self.anchor[name]) for name in self.momentum}

    def state(self) -> dict[str, Tensor]:
        """Return the outer momentum by parameter name; checkpoints fall on exchanges, where anchor == weight."""
        return dict(self.momentum)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back the outer momentum and take the current weights as anchors."""
        self.since, self.due = 0, False
        for name, parameter in self.parameters.items():
            self.anchor[name].copy_(parameter)
            if name in self.momentum:
                self.momentum[name] = fitting(f"outer momentum of {name}", state[name], self.momentum[name])

    @torch.no_grad()
    def leave_local(self) -> dict[str, Tensor]:
        """Return this rank's own weights between two exchanges and how far it has come, and go back to the anchor;
        nothing at an exchange. A second call returns the same."""
        if not self.since or self.left:
            return self.left
        self.left = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.left[SINCE] = torch.tensor([self.since, int(self.due)])
        for name, parameter in self.parameters.items():
            parameter.copy_(self.anchor[name])
        return self.left

    @torch.no_grad()
    def go_local(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `leave_local` returned, after `load_state`."""
        self.since, due = state[SINCE].tolist()
        self.due = bool(due)
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


def _followed(momentum: Tensor, before: Tensor | None, after: Tensor | None, weight: Tensor) -> Tensor:
    """Return momentum as it is after a mask update: of the weight's shape, which may be that of active values alone."""
    sets = [mask for mask in (before, after) if mask is not None]
    if not sets:
        return momentum.reshape(weight.shape)
    if momentum.shape != sets[0].shape:
        momentum = spread(momentum, torch.ones_like(sets[0]) if before is None else before)
    kept = momentum if after is None else torch.where(after, momentum, 0.0)
    if weight.shape == kept.shape:
        return kept
    return kept.reshape(-1) if after is None else kept[after]
