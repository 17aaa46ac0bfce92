"""Masked weights, their gradients and their optimizer state as the values of the active coordinates alone.

A parameter's data is 1-D then, in U-coordinates (ascending flat positions of its update set), and so is all that goes
by it: gradients, moments, the exchange's residuals. Its layer multiplies by these values in the way that was chosen for
it. At a mask update the weights are whole for a moment and the state of what stays is carried over.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.compute.choice import Chooser, Timed
from sparsetrain.compute.layer import Layer, put
from sparsetrain.compute.layers import layers_of
from sparsetrain.compute.pairs import pair
from sparsetrain.config.coupling import Coupling
from sparsetrain.config.job import Job
from sparsetrain.engine.engine import Parts, gradient
from sparsetrain.engine.operations import unchanged
from sparsetrain.engine.torch_engine import TorchEngine
from sparsetrain.masks.agreement import Gather
from sparsetrain.masks.lazy import Lazy
from sparsetrain.masks.maskset import MaskSet, spread
from sparsetrain.masks.methods.base import MaskMethod
from sparsetrain.masks.transition import moved


def refusal(job: Job) -> str:
    """Return why a job's masked weights have to be held whole, as `path: what is wrong`; nothing where they need not
    be."""
    if job.masks is None:
        return "masks: none, so no weights are masked"
    if job.engine.name != "torch":
        return f"engine: {job.engine.name} holds weights in its own way; allowed: torch"
    name, method = job.masks.method.name, registry.load("mask_method", job.masks.method.name)
    if job.masks.regulariser is not None:
        return f"masks.regulariser: {job.masks.regulariser.name} looks at whole weights"
    if not issubclass(method, MaskMethod) or method.update_set is not MaskMethod.update_set:
        return f"masks.method: {name} gives gradients to weights that the forward pass leaves out"
    if method.pull is not MaskMethod.pull or method.learns_budget or method.keeps_dormant or method.rewinds:
        return f"masks.method: {name} looks at whole weights between mask updates"
    return ""


class CompactEngine(TorchEngine):
    """The torch engine over a model whose masked layers hold the values of their masks.

    `masks` returns the present masks, which the way out of `whole` with a change follows; `bucketed` takes weights that
    could be held so and returns those that the exchange can take so. `others` says of the rest why not. `example` is
    a batch; `couplings` are the model's own.
    """

    packs = True

    def __init__(
        self,
        parts: Parts,
        *,
        masks: Callable[[], MaskSet],
        bucketed: Callable[[list[str]], list[str]],
        gather: Gather,
        example: tuple[Tensor, ...],
        couplings: Sequence[Coupling] = (),
    ) -> None:
        super().__init__(TorchEngine.Config(), parts)
        self.masks, self.gather = masks, gather
        layers, self.others = layers_of(self.model, masks().masks)
        names = bucketed(list(layers))
        for name in layers.keys() - set(names):
            layers[name].leave()
            self.others[name] = "it is small, and travels dense"
        self.layers: dict[str, Layer] = {name: layers[name] for name in names}
        self.chooser = Chooser(parts.job.compute)
        self.said: dict[str, Timed] = {}
        self.first = parts.world.rank == 0
        self.depth = 0
        self.changed = False
        with torch.no_grad(), unchanged(self.model), self._autocast():
            self.model.loss(example)  # what a choice is for depends on what comes in
        with unchanged(self.model):
            pair(self.model, self.layers, couplings, example)
        for name, layer in self.layers.items():
            layer.adopt(masks().update(name))

    @property
    def compact(self) -> frozenset[str]:
        """See Engine."""
        return frozenset(name for name in self.layers if self.parameters[name].ndim == 1)

    def begin(self) -> None:
        """See Engine."""
        super().begin()
        for layer in self.layers.values():
            layer.forget()

    def watch(self, wanted: bool) -> None:
        """See Engine."""
        for layer in self.layers.values():
            layer.watching = wanted

    def dense_gradient(self, name: str) -> Tensor:
        """See Engine."""
        parameter, layer = self.parameters[name], self.layers.get(name)
        if layer is None or layer.way is None:
            return gradient(parameter)
        dense = layer.dense_gradient()
        if dense is not None:
            return dense
        if parameter.grad is None:
            return torch.zeros(layer.geometry.shape, device=self.device)
        return layer.whole(parameter.grad)

    def weights(self) -> Mapping[str, Tensor]:
        """See Engine."""
        return Lazy(self.parameters, self._weight)

    def _weight(self, name: str) -> Tensor:
        data = self.parameters[name].detach()
        return self.layers[name].whole(data) if name in self.layers and data.ndim == 1 else data

    def step(self, step: int, means: Mapping[str, Tensor], norm: float) -> None:
        """See Engine."""
        super().step(step, {**means, **{name: self.shaped(name, means[name]) for name in self.layers}}, norm)

    def shaped(self, name: str, mean: Tensor) -> Tensor:
        """See Engine."""
        shape = self.parameters[name].shape
        return mean.reshape(shape) if mean.numel() == shape.numel() else self.layers[name].whole(mean)

    @contextlib.contextmanager
    def whole(self, change: bool = False) -> Generator[None]:
        """See Engine."""
        self.depth += 1
        if self.depth == 1:
            kept = {name: self.parameters[name].data for name in self.compact}
            for name, values in kept.items():
                put(self.parameters[name], self.layers[name].whole(values))
        else:
            kept = {}
        self.changed = change or (self.depth > 1 and self.changed)
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                if self.changed:
                    for name in self.layers:
                        self._hold(name, self.parameters[name].data)
                else:
                    for name, values in kept.items():
                        put(self.parameters[name], values)
                self.changed = False

    @torch.no_grad()
    def follow(self, old: MaskSet, new: MaskSet) -> None:
        """See Engine. Inside `whole` weights are brought to the new masks on the way out."""
        for name, before, after in old.changes(new):
            stayed, parameter, layer = before & after, self.parameters[name], self.layers.get(name)
            if layer is not None:
                whole = None if self.depth else torch.where(stayed, self._weight(name), 0.0)
                layer.adopt(after)
                if whole is not None:
                    self._hold(name, whole)
            state = self.optimizer.state.get(parameter, {})
            for field, value in state.items():
                if torch.is_tensor(value) and value.ndim:
                    there = moved(field, spread(value, before), stayed, after)
                    state[field] = there[after] if layer is not None and layer.way is not None else there

    @property
    def transitions(self) -> torch.optim.Optimizer | None:
        """See Engine."""
        return None

    def choose(self) -> list[str]:
        """See Engine: rank 0 measures."""
        # A rank that was lost may have left some that know the choice and some that do not.
        unsettled = {name for part in self.gather(self._stale()) for name in json.loads(part)}
        undecided = [name for name in self.layers if name in unsettled]
        if not undecided:
            return []
        found = {name: self.chooser.choose(self.layers[name]) for name in undecided} if self.first else {}
        chosen = json.loads(self.gather(json.dumps({n: timed.chosen for n, timed in found.items()}).encode())[0])
        for name in undecided:
            self._choose(name, chosen[name])
        self.said |= found
        why = {name: f"; {timed.why}" for name, timed in found.items()}
        return [f"compute: {name}: {self.layers[name].chosen}{why.get(name, '')}" for name in undecided]

    def ways(self) -> dict[str, str]:
        """See Engine."""
        return {name: layer.chosen for name, layer in self.layers.items() if not layer.stale}

    def go_on(self, ways: Mapping[str, str]) -> None:
        """See Engine."""
        masks = self.masks()
        for name, layer in self.layers.items():
            layer.adopt(masks.update(name))
            if name in ways:
                layer.choose(ways[name])
            size = (layer.pattern.count,) if layer.way is not None else layer.geometry.shape
            put(self.parameters[name], torch.empty(size, device=self.device))

    def _stale(self) -> bytes:
        return json.dumps([name for name, layer in self.layers.items() if layer.stale]).encode()

    @torch.no_grad()
    def _choose(self, name: str, way: str) -> None:
        """Let a layer multiply in a way, and hold its weight and what goes by it as that wants it."""
        layer, parameter = self.layers[name], self.parameters[name]
        layer.choose(way)
        if (parameter.ndim == 1) == (layer.way is not None):
            return
        self._hold(name, self._weight(name))
        state = self.optimizer.state.get(parameter, {})
        for field, value in state.items():
            if torch.is_tensor(value) and value.ndim:
                state[field] = value[layer.mask] if layer.way is not None else spread(value, layer.mask)

    def close(self) -> None:
        """See Engine."""
        for layer in self.layers.values():
            layer.leave()

    def _hold(self, name: str, whole: Tensor) -> None:
        """Hold a whole weight as its layer wants it with the present mask."""
        layer, parameter = self.layers[name], self.parameters[name]
        layer.adopt(self.masks().update(name))
        put(parameter, whole if layer.way is None else layer.values(whole))
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            parameter.grad = None
