"""What a sparse layer costs beside the best dense one of this machine, by shape, batch, density and way."""

from __future__ import annotations

import dataclasses
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
    *("layer", "batch", "threads", "density", "way"),
    *("forward_ms", "backward_ms", "ratio_to_ideal", "speedup_forward", "speedup"),
)
AUTO = " (auto)"  # behind the way that is chosen
SINGLE = ("sparse", f"sparse{AUTO}")
PRECISIONS = ("highest", "medium")  # torch's own product, and oneDNN's: the faster of the two is the best dense one
Call = Callable[[], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: layers of a shape [outputs, inputs] or [outputs, inputs, height, width], which are convolutions
    of images of `pixels` x `pixels`; batches of samples or images; densities; on `device`, in `dtype`."""

    layers: tuple[tuple[int, ...], ...]
    batches: tuple[int, ...]
    densities: tuple[float, ...]
    threads: int = 1
    rounds: int = 5
    pixels: int = 14
    device: str = "cpu"
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.threads < 1 or self.pixels < 1 or any(b < 1 for b in self.batches):
            raise ValueError("want at least 1 round, 1 thread, 1 pixel and batches of at least 1")
        if any(not 0 < d <= 1 for d in self.densities):
            raise ValueError("want densities above 0 and at most 1")
        if any(min(shape) < 1 for shape in self.layers):
            raise ValueError("want layers of at least 1 x 1")
        if any(math.prod(shape) >= 1 << 31 for shape in self.layers):
            raise ValueError("want layers of less than 2^31 weights, whose places are 32 bits")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here; allowed: --device cpu")


def measure(setting: Setting) -> dict[str, Any]:
    """Return {"rows", "crossings"}: a row with COLUMNS for each layer, batch, density and way that fits, `masked` is
    the best dense product; and for each layer and batch the density below which single weights are faster.

    Forward, and forward with both gradients, are timed for themselves; `speedup` is of the latter over the best dense
    product of that type, median over rounds. `ratio_to_ideal` is to the dense time times the density. `smaller` gets a
    mask that leaves whole outputs and inputs, `block` one of 32 x 32 weights, `two_four` a transposable one of its
    density, the others one of single weights; `auto` stands at what is chosen for the last.
    """
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(setting.threads)
    rows, crossings = [], []
    try:
        for shape in setting.layers:
            for batch in setting.batches:
                found = [row for density in setting.densities for row in _rows(setting, shape, batch, density)]
                rows += found
                crossings.append({"layer": _named(shape), "batch": batch, **crossing(found)})
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
    return "\n".join([*lines, render(result["crossings"], ("layer", "batch", "training", "inference"))])


def _rows(setting: Setting, shape: tuple[int, ...], batch: int, density: float) -> Iterator[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    image = (setting.pixels, setting.pixels) if len(shape) == 4 else ()
    dtype = DTYPES[setting.dtype]
    x = torch.randn(batch, shape[1], *image, generator=draw).to(setting.device, dtype)
    dense = _layer(torch.ones(shape, dtype=torch.bool), x)
    weight = torch.randn(shape, generator=draw).to(setting.device)
    bias = torch.zeros(shape[0], device=setting.device)
    given = (x, torch.randn_like(dense.geometry.forward(x, weight.to(dtype), bias.to(dtype))), bias)
    candidates = {p: _calls(dense.geometry, dtype, weight, given, p) for p in PRECISIONS}
    for name in registry.names("way"):
        layer = _layer(MASKS.get(name, _single)(shape, density, draw), x)
        way = registry.load("way", name)
        if way.refuses(layer.geometry, layer.mask, layer.pattern, dtype):
            continue
        made = way(layer.geometry, layer.mask, layer.pattern)
        values = torch.randn(layer.pattern.count, device=setting.device)
        candidates[name] = _calls(made, made.computes_in(dtype), values, given)
    chosen = Chooser().choose(_layer(_single(shape, density, draw), x)).chosen
    forward = interleave({name: calls[0] for name, calls in candidates.items()}, setting.rounds)
    backward = interleave({name: calls[1] for name, calls in candidates.items()}, setting.rounds)
    best = [
        [min(times[p][turn] for p in PRECISIONS) for turn in range(setting.rounds)] for times in (forward, backward)
    ]
    forward[MASKED], backward[MASKED] = best
    for name in [name for name in forward if name not in PRECISIONS]:
        own = [list(zip(times[name], base, strict=True)) for times, base in zip((forward, backward), best, strict=True)]
        ahead = statistics.median(dense / each for each, dense in own[0])
        both = [(f + b, df + db) for (f, df), (b, db) in zip(*own, strict=True)]
        speedup = statistics.median(dense / each for each, dense in both)
        values = (
            *(_named(shape), batch, setting.threads, density, name + AUTO if name == chosen else name),
            *(1e3 * statistics.median(times[name]) for times in (forward, backward)),
            *(1 / (speedup * density), ahead, speedup),
        )
        yield dict(zip(COLUMNS, values, strict=True))


def _named(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _single(shape: tuple[int, ...], density: float, draw: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=draw) < density


def _blocks(shape: tuple[int, ...], density: float, draw: torch.Generator) -> Tensor:
    blocks = torch.rand([-(-n // BLOCK) for n in shape[:2]], generator=draw) < density
    mask = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]
    return mask.view(*mask.shape, *[1] * (len(shape) - 2)).expand(shape).contiguous()


def _rectangle(shape: tuple[int, ...], density: float, draw: torch.Generator) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    sides = [torch.randperm(n, generator=draw)[: max(1, round(n * math.sqrt(density)))] for n in shape[:2]]
    mask[sides[0][:, None], sides[1]] = True
    return mask


def _two_four(shape: tuple[int, ...], density: float, draw: torch.Generator) -> Tensor:
    """Return a transposable 2:4 mask where that is the density, else one that is none."""
    mask = torch.zeros(shape, dtype=torch.bool)
    if density == 0.5 and len(shape) == 2 and not any(side % 4 for side in shape):
        first = torch.rand(shape[0] // 4, shape[1] // 4, generator=draw) < 0.5
        half = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
        mask = torch.where(first.repeat_interleave(4, 0).repeat_interleave(4, 1), half.repeat(first.shape), False)
        mask |= ~first.repeat_interleave(4, 0).repeat_interleave(4, 1) & ~half.repeat(first.shape)
    return mask


BLOCK = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MASKS = {"smaller": _rectangle, "block": _blocks, "two_four": _two_four}


def _layer(mask: Tensor, x: Tensor) -> Layer:
    outputs, inputs, *window = mask.shape
    module: nn.Module = nn.Linear(inputs, outputs)
    if window:
        module = nn.Conv2d(inputs, outputs, (window[0], window[1]), padding=(window[0] // 2, window[1] // 2))
    module.to(x.device)
    (layer,) = layers_of(module, ["weight"])[0].values()
    layer.adopt(mask.to(x.device))
    layer.seen, layer.dtype = tuple(x.shape), x.dtype
    return layer


def _calls(
    way: Any, dtype: torch.dtype, weight: Tensor, given: tuple[Tensor, Tensor, Tensor], precision: str = "medium"
) -> tuple[Call, Call]:
    """Return a forward pass, and the backward pass with both gradients, of a way or of a geometry."""
    x, dy, bias = (each.to(dtype) for each in given)

    def settled(result: Any) -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    def forward() -> None:
        torch.set_float32_matmul_precision(precision)
        settled(way.forward(x, weight.to(dtype), bias))

    def backward() -> None:
        torch.set_float32_matmul_precision(precision)
        settled(way.backward(x, weight.to(dtype), dy, (True, True)))

    return forward, backward
