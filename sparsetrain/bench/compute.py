"""What a sparse layer costs beside the best dense one of this machine, by shape, batch, density and way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain import registry
from sparsetrain.bench.table import interleave, render
from sparsetrain.compute.choice import Chooser
from sparsetrain.compute.layer import MASKED, Layer
from sparsetrain.compute.layers import layers_of

COLUMNS = (
    *("outputs", "inputs", "batch", "threads", "density", "way"),
    *("forward_ms", "backward_ms", "ratio_to_ideal", "speedup_forward", "speedup"),
)
AUTO = " (auto)"  # behind the way that is chosen
SINGLE = ("sparse", f"sparse{AUTO}")
PRECISIONS = ("highest", "medium")  # torch's own product, and oneDNN's: the faster of the two is the best dense one
Call = Callable[[], None]


def measure(
    shapes: Sequence[tuple[int, int]], batches: Sequence[int], densities: Sequence[float], threads: int, rounds: int
) -> dict[str, Any]:
    """Return {"rows", "crossings"}: a row with COLUMNS for each shape, batch, density and way that fits, `masked` is
    the best dense product; and for each shape and batch the density below which single weights are faster.

    Forward, and forward with both gradients, are timed for themselves; `speedup` is of the latter over the best fp32
    dense product, median over rounds. `ratio_to_ideal` is to the dense time times the density. `smaller` gets a mask
    that leaves whole outputs and inputs, `block` one of 32 x 32 weights, the others one of single weights; `auto`
    stands at what is chosen for the last. Raises ValueError for what makes no sense.
    """
    if rounds < 1 or threads < 1 or any(not 0 < d <= 1 for d in densities) or any(b < 1 for b in batches):
        raise ValueError("want at least 1 round, 1 thread, batches of at least 1, and densities above 0 and at most 1")
    if any(min(shape) < 1 for shape in shapes):
        raise ValueError("want layers of at least 1 x 1")
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    rows, crossings = [], []
    try:
        for shape in shapes:
            for batch in batches:
                found = [row for density in densities for row in _rows(shape, batch, density, threads, rounds)]
                rows += found
                crossings.append({"outputs": shape[0], "inputs": shape[1], "batch": batch, **crossing(found)})
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)
    return {"rows": rows, "crossings": crossings}


def crossing(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return {"training": density, "inference": density} at which the way for single weights is as fast as the best
    dense product, between the measured densities on a line through their logarithms; None where it never is."""
    found: dict[str, float | None] = {}
    for what, column in (("training", "speedup"), ("inference", "speedup_forward")):
        points = sorted((row["density"], row[column]) for row in rows if row["way"] in SINGLE)
        fast = [density for density, speedup in points if speedup >= 1]
        slow = [(density, speedup) for density, speedup in points if speedup < 1]
        found[what] = max(fast, default=None)
        if fast and slow and slow[0][0] > max(fast):
            (low, above), (high, below) = next(p for p in points if p[0] == max(fast)), slow[0]
            share = math.log(above) / (math.log(above) - math.log(below))
            found[what] = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return found


def show(result: Mapping[str, Any]) -> str:
    """Return the tables that people read."""
    lines = [
        render(result["rows"], COLUMNS),
        "",
        "densities below which single weights are faster than the dense product",
    ]
    return "\n".join([*lines, render(result["crossings"], ("outputs", "inputs", "batch", "training", "inference"))])


def _rows(shape: tuple[int, int], batch: int, density: float, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    x, dy = torch.randn(batch, shape[1], generator=draw), torch.randn(batch, shape[0], generator=draw)
    candidates: dict[str, tuple[Call, Call]] = {}
    for precision in PRECISIONS:
        candidates[precision] = _dense(torch.randn(shape, generator=draw), x, dy, precision)
    for name in registry.names("way"):
        mask = MASKS.get(name, _single)(shape, density, draw)
        layer = _layer(mask, x)
        way = registry.load("way", name)
        if way.refuses(layer.geometry, layer.mask, layer.pattern, layer.dtype):
            continue
        candidates[name] = _passes(way(layer.geometry, layer.mask, layer.pattern), layer, x, dy)
    chosen = Chooser().choose(_layer(_single(shape, density, draw), x)).chosen
    forward = interleave({name: calls[0] for name, calls in candidates.items()}, rounds)
    backward = interleave({name: calls[1] for name, calls in candidates.items()}, rounds)
    best = [[min(times[p][turn] for p in PRECISIONS) for turn in range(rounds)] for times in (forward, backward)]
    forward[MASKED], backward[MASKED] = best
    for name in [name for name in forward if name not in PRECISIONS]:
        own = [list(zip(times[name], base, strict=True)) for times, base in zip((forward, backward), best, strict=True)]
        ahead = statistics.median(dense / each for each, dense in own[0])
        both = [(f + b, df + db) for (f, df), (b, db) in zip(*own, strict=True)]
        speedup = statistics.median(dense / each for each, dense in both)
        values = (
            *(*shape, batch, threads, density, name + AUTO if name == chosen else name),
            *(1e3 * statistics.median(times[name]) for times in (forward, backward)),
            *(1 / (speedup * density), ahead, speedup),
        )
        yield dict(zip(COLUMNS, values, strict=True))


def _single(shape: tuple[int, int], density: float, draw: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=draw) < density


def _blocks(shape: tuple[int, int], density: float, draw: torch.Generator) -> Tensor:
    blocks = torch.rand([-(-n // BLOCK) for n in shape], generator=draw) < density
    return blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]].contiguous()


def _rectangle(shape: tuple[int, int], density: float, draw: torch.Generator) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    sides = [torch.randperm(n, generator=draw)[: max(1, round(n * math.sqrt(density)))] for n in shape]
    mask[sides[0][:, None], sides[1]] = True
    return mask


BLOCK = 32
MASKS = {"smaller": _rectangle, "block": _blocks}


def _layer(mask: Tensor, x: Tensor) -> Layer:
    module = nn.Linear(mask.shape[1], mask.shape[0])
    (layer,) = layers_of(module, ["weight"])[0].values()
    layer.adopt(mask)
    layer.seen = tuple(x.shape)
    return layer


def _passes(way: Any, layer: Layer, x: Tensor, dy: Tensor) -> tuple[Call, Call]:
    values, bias = torch.randn(layer.pattern.count), torch.zeros(len(layer.mask))
    return lambda: way.forward(x, values, bias), lambda: way.backward(x, values, dy, (True, True))


def _dense(weight: Tensor, x: Tensor, dy: Tensor, precision: str) -> tuple[Call, Call]:
    bias = torch.zeros(len(weight))

    def forward() -> None:
        torch.set_float32_matmul_precision(precision)
        nn.functional.linear(x, weight, bias)

    def backward() -> None:
        torch.set_float32_matmul_precision(precision)
        dy @ weight
        dy.t() @ x

    return forward, backward
