"""How a layer multiplies: every way that fits is timed beside the dense product, and the fastest one is taken."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.compute.layer import MASKED, Layer
from sparsetrain.compute.ways.base import Way

ROUNDS = 3  # of all ways in turn, after one that is not counted
STEPS = 16  # of the logarithm of the density between two measurements: 15 % apart
GAIN = 0.97  # of the dense product's time at most, or it stays


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of one forward and backward pass of a layer, by way; `chosen` is the fastest, `why` says so in a line."""

    chosen: str
    seconds: dict[str, float]
    why: str


class Chooser:
    """Chooses for layers, and measures each shape and density once."""

    def __init__(self, wanted: str = "auto", clock: Callable[[], float] = time.perf_counter) -> None:
        self.wanted = wanted
        self.clock = clock
        self.known: dict[tuple[object, ...], Timed] = {}

    def choose(self, layer: Layer) -> Timed:
        """Return the way for a layer with its present mask and the inputs that it has seen. Local."""
        fitting, unfit = _fitting(layer)
        if self.wanted != "auto":
            name = self.wanted if self.wanted in fitting else MASKED
            why = "as the job says" if name == self.wanted else unfit[self.wanted]
            return Timed(name, {}, why)
        if not fitting:
            return Timed(MASKED, {}, "; ".join(f"{name}: {why}" for name, why in unfit.items()))
        if not layer.seen:
            return Timed(MASKED, {}, "no input has been seen")
        density = layer.pattern.density
        steps = 0 if density <= 0 else round(STEPS * torch.tensor(density).log10().item())
        key = (layer.geometry, layer.seen, torch.get_num_threads(), steps, tuple(fitting))
        if key not in self.known:
            self.known[key] = self._measure(layer, fitting)
        return self.known[key]

    def _measure(self, layer: Layer, fitting: dict[str, type[Way]]) -> Timed:
        x, dy, values, bias = _example(layer)
        whole = layer.whole(values)
        multiplied: dict[str, tuple[Any, Tensor]] = {MASKED: (layer.geometry, whole)}
        multiplied |= {n: (way(layer.geometry, layer.mask, layer.pattern), values) for n, way in fitting.items()}
        times: dict[str, list[float]] = {name: [] for name in multiplied}
        for turn in range(ROUNDS + 1):
            for name, (way, weight) in multiplied.items():
                began = self.clock()
                way.forward(x, weight, bias)
                way.backward(x, weight, dy, (True, True))
                if turn:
                    times[name].append(self.clock() - began)
        seconds = {name: statistics.median(each) for name, each in times.items()}
        best = min(seconds, key=lambda name: seconds[name])
        chosen = best if seconds[best] < GAIN * seconds[MASKED] else MASKED
        told = ", ".join(f"{name} {each * 1e3:.2f} ms" for name, each in seconds.items())
        return Timed(chosen, seconds, f"forward and backward: {told}")


def _fitting(layer: Layer) -> tuple[dict[str, type[Way]], dict[str, str]]:
    """Return the ways that fit a layer's mask, and why the others do not."""
    found: dict[str, type[Way]] = {}
    unfit: dict[str, str] = {}
    for name in registry.names("way"):
        way = registry.load("way", name)
        why = way.refuses(layer.geometry, layer.mask, layer.pattern)
        if why:
            unfit[name] = why
        else:
            found[name] = way
    return found, unfit


def _example(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return an input as the layer has seen, the gradient of what it gives out, values and a bias."""
    device = layer.mask.device
    state = torch.get_rng_state()  # a run's own draws must not depend on what is measured
    x = torch.randn(layer.seen, device=device)
    values = torch.randn(layer.pattern.count, device=device)
    bias = torch.zeros(layer.geometry.outputs, device=device) if layer.module.bias is not None else None
    dy = torch.randn_like(layer.geometry.forward(x, layer.whole(values), bias))
    torch.set_rng_state(state)
    return x, dy, values, bias
