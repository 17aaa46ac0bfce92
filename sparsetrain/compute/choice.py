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
MOST, ENOUGH = 15, 0.1  # quick layers have more rounds, up to so many or so many seconds
STEPS = 16  # of the logarithm of the density between two measurements: 15 % apart
GAIN = 0.85  # of the dense product's time in the same round at most, or it stays: measurements differ by ten per cent


Example = tuple[Tensor, Tensor, Tensor, Tensor | None]


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
        key = (layer.geometry, layer.seen, layer.dtype, torch.get_num_threads(), steps, tuple(fitting))
        if key not in self.known:
            self.known[key] = self._measure(layer, fitting)
        return self.known[key]

    def _measure(self, layer: Layer, fitting: dict[str, type[Way]]) -> Timed:
        given = _example(layer)
        passes: dict[str, Callable[[], None]] = {
            MASKED: _pass(layer.geometry, layer.dtype, layer.whole(given[2]), given)
        }
        for name, way in fitting.items():
            made = way(layer.geometry, layer.mask, layer.pattern)
            passes[name] = _pass(made, made.computes_in(layer.dtype), given[2], given)
        times: dict[str, list[float]] = {name: [] for name in passes}
        first = self.clock()
        for turn in range(MOST + 1):
            if turn > ROUNDS and self.clock() - first > ENOUGH:
                break
            for name, once in passes.items():
                began = self.clock()
                once()
                if turn:
                    times[name].append(self.clock() - began)
        seconds = {name: statistics.median(each) for name, each in times.items()}
        # The machine's speed drifts; what was measured in one round met the same.
        shares = {
            name: statistics.median(own / dense for own, dense in zip(each, times[MASKED], strict=True))
            for name, each in times.items()
        }
        best = min(shares, key=lambda name: shares[name])
        chosen = best if shares[best] < GAIN else MASKED
        told = ", ".join(f"{name} {each * 1e3:.2f} ms" for name, each in seconds.items())
        return Timed(chosen, seconds, f"forward and backward: {told}")


def _fitting(layer: Layer) -> tuple[dict[str, type[Way]], dict[str, str]]:
    """Return the ways that fit a layer's mask, and why the others do not."""
    found: dict[str, type[Way]] = {}
    unfit: dict[str, str] = {}
    for name in registry.names("way"):
        way = registry.load("way", name)
        why = way.refuses(layer.geometry, layer.mask, layer.pattern, layer.dtype)
        if why:
            unfit[name] = why
        else:
            found[name] = way
    return found, unfit


def _pass(way: Any, dtype: torch.dtype, weight: Tensor, given: Example) -> Callable[[], None]:
    """Return a forward and a backward pass in a type, from what the model has and to where it needs it."""
    x, dy, _, bias = given

    def once() -> None:
        y = way.forward(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        _, gradient = way.backward(x.to(dtype), weight.to(dtype), dy.to(y.dtype), (True, True))
        gradient.to(weight.dtype)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return once


def _example(layer: Layer) -> Example:
    """Return an input as the layer has seen, the gradient of what it gives out, values and a bias."""
    device = layer.mask.device
    # A run's own draws must not depend on what is measured.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x = torch.randn(layer.seen, device=device, dtype=layer.dtype)
        values = torch.randn(layer.pattern.count, device=device)
        bias = torch.zeros(layer.geometry.outputs, device=device) if layer.module.bias is not None else None
        some = None if bias is None else bias.to(layer.dtype)
        dy = torch.randn_like(layer.geometry.forward(x, layer.whole(values).to(layer.dtype), some))
    return x, dy, values, bias
