"""What a selection costs beside the memory pass that nobody can avoid, and beside torch.topk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier
from sparsetrain.gradient.sparsifiers.block_topk import BlockTopK
from sparsetrain.gradient.sparsifiers.sampled import Sampled
from sparsetrain.gradient.sparsifiers.threshold import Threshold
from sparsetrain.gradient.sparsifiers.topk import TopK
from sparsetrain.kernels.reference.select import select_cpu
from sparsetrain.kernels.sampling import plan

LAYERS, SPREAD, OLD = 64, 0.7, 1.5  # parts of other scales, spread of their logarithms, the residual's scale
COLUMNS = ("name", "n", "density", "threads", "seconds", "ratio_to_limit", "speedup_over_torch_topk", "exact", "energy")
IN_PLACE = ("limit", "torch.topk")
SPARSIFIERS: dict[str, Sparsifier] = {
    "topk": TopK(TopK.Config()),
    "threshold": Threshold(Threshold.Config()),
    "block_topk": BlockTopK(BlockTopK.Config()),
    "sampled": Sampled(Sampled.Config()),
}


def measure(sizes: Sequence[int], densities: Sequence[float], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row per candidate, size and density: medians of `rounds` turns.

    `ratio_to_limit` is to `r += g`, which reads and writes what every error feedback must; `energy` is the share of
    the exact top-k's squared norm. Ours is what an exchange does: it reads gradient and residual where they lie and
    leaves the next residual in another buffer; a sparsifier that cannot do so pays for the copy.

    Raises ValueError for densities outside 0..1 or fewer than one round.
    """
    if rounds < 1 or threads < 1 or any(not 0 < d <= 1 for d in densities) or any(n < 1 for n in sizes):
        raise ValueError("want at least 1 round, 1 thread, 1 element, and densities above 0 and at most 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [row for n in sizes for density in densities for row in _rows(n, density, threads, rounds)]
    finally:
        torch.set_num_threads(before)


def _rows(n: int, density: float, threads: int, rounds: int) -> list[dict[str, Any]]:
    old, gradient = _draw(n)
    k = max(1, round(density * n))
    candidates: dict[str, Callable[[Tensor], Tensor]] = {"limit": lambda buffer: buffer.add_(old)}
    candidates |= {name: _candidate(each, old, gradient, k) for name, each in SPARSIFIERS.items()}
    candidates["topk reference"] = _reference(old, gradient, k)
    candidates["torch.topk"] = lambda buffer: _plain(buffer.add_(old), k)
    buffer, rest, seconds, energy = gradient.clone(), gradient.clone(), {name: [] for name in candidates}, {}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            buffer.copy_(gradient)  # for those that add in place
            began = time.perf_counter()
            values = call(buffer if name in IN_PLACE else rest)
            if turn:
                seconds[name].append(time.perf_counter() - began)
            energy[name] = float(values.double().square().sum())
    exact = energy["torch.topk"]
    rows = []
    for name in [name for name in candidates if name != "limit"]:
        pairs = zip(seconds[name], seconds["limit"], seconds["torch.topk"], strict=True)
        to_limit, speedup = zip(*((own / limit, topk / own) for own, limit, topk in pairs), strict=True)
        figures = [statistics.median(each) for each in (seconds[name], to_limit, speedup)]
        share = energy[name] / exact
        # The order of a sum may differ in the last digits.
        values = [name, n, density, threads, *figures, abs(share - 1) < 1e-9, share]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _draw(n: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    scales = torch.exp(SPREAD * torch.randn(LAYERS, generator=draw)).repeat_interleave(-(-n // LAYERS))[:n]
    return torch.randn(n, generator=draw).mul_(scales).mul_(OLD), torch.randn(n, generator=draw).mul_(scales)


def _plain(buffer: Tensor, k: int) -> Tensor:
    """The same in four calls of torch: the signed values of the k largest, which leave the buffer."""
    at = torch.topk(buffer.abs(), k, sorted=False).indices
    values = buffer[at]
    buffer[at] = 0.0
    return values


def _candidate(sparsifier: Sparsifier, old: Tensor, gradient: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    if sparsifier.gathers:
        return lambda buffer: sparsifier.select(old, buffer, Ask(k, parts=(gradient,))).values
    return lambda buffer: sparsifier.select(old, buffer.copy_(gradient), Ask(k)).values


def _reference(old: Tensor, gradient: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    def call(buffer: Tensor) -> Tensor:
        chosen = select_cpu(old, buffer.copy_(gradient), k, 1.0, None, plan(buffer.numel(), k))
        assert chosen is not None
        return chosen[1]

    return call
