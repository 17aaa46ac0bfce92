"""Selection on CUDA: a sampled threshold, a counting pass, a compacting pass, exact ranking of the candidates.

A sort of the whole buffer would read it dozens of times; here it is read twice. The same bits as the reference:
multiply and add are not fused, and counts and ties do not depend on which block ran first.
"""

from __future__ import annotations

import torch
import triton  # pyrefly: ignore[missing-import]
import triton.language as tl  # pyrefly: ignore[missing-import]
from torch import Tensor

from sparsetrain.kernels.reference.select import INFINITY, MAGNITUDE, Range, largest, select_device
from sparsetrain.kernels.sampling import Plan

BLOCK = 2048  # elements per program


@triton.jit
def _add_and_count(old, buffer, threshold, counts, size, scale, TERM: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    acc = tl.load(buffer + at, mask=inside, other=0.0)
    if TERM == 1:
        acc = acc + tl.load(old + at, mask=inside, other=0.0)
    if TERM == 2:
        acc = acc + scale * tl.load(old + at, mask=inside, other=0.0)
    if TERM != 0:
        tl.store(buffer + at, acc, mask=inside)
    magnitude = acc.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    candidate = inside & (magnitude >= tl.load(threshold))
    tl.store(counts + tl.program_id(0), tl.sum(candidate.to(tl.int32), axis=0))


@triton.jit
def _compact(buffer, threshold, ends, indices, values, size, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    first = tl.load(ends + program - 1, mask=program > 0, other=0)
    if tl.load(ends + program) > first:
        at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        acc = tl.load(buffer + at, mask=inside, other=0.0)
        magnitude = acc.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        candidate = inside & (magnitude >= tl.load(threshold))
        slot = first + tl.cumsum(candidate.to(tl.int32), axis=0) - 1
        tl.store(indices + slot, at.to(tl.int32), mask=candidate)
        tl.store(values + slot, acc, mask=candidate)


def select_cuda(
    old: Tensor | None, buffer: Tensor, k: int, scale: float, limits: Range | None, plan: Plan | None
) -> tuple[Tensor, Tensor] | None:
    """Return (indices, values) as `kernels.select` promises, None for a sum that is not finite."""
    if plan is None:
        return select_device(old, buffer, k, scale, limits, plan)
    threshold = _threshold(old, buffer, scale, plan, plan.low if limits is None else plan.middle)
    places, values = _candidates(old, buffer, scale, threshold)
    magnitude = values.view(torch.int32) & int(MAGNITUDE)
    if places.numel() and int(magnitude.max()) >= int(INFINITY):
        return None
    if limits is None or not limits[0] <= places.numel() <= limits[1]:
        if places.numel() < k:
            # The sample was unlucky, or everything is a candidate; the sum is complete now.
            return select_device(None, buffer, k, 1.0, None, None)
        keep = largest(values.abs(), k)
        places, values = places[keep], values[keep]
    buffer[places.long()] = 0.0
    return places, values


def _threshold(old: Tensor | None, buffer: Tensor, scale: float, plan: Plan, rank: int) -> Tensor:
    """Return the magnitude (its bits, int32 [1]) that the sample's `rank`-th reaches; it stays on the device."""
    at = torch.from_numpy(plan.positions()).to(buffer.device)
    sample = buffer[at]
    if old is not None:
        sample += old[at] if scale == 1.0 else old[at] * scale
    magnitude = sample.view(torch.int32) & int(MAGNITUDE)
    return torch.topk(magnitude, rank).values[-1:].clamp(max=int(INFINITY))


def _candidates(old: Tensor | None, buffer: Tensor, scale: float, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Make `buffer` the sum; return (places int32 ascending, values) of what reaches the threshold."""
    size, blocks = buffer.numel(), triton.cdiv(buffer.numel(), BLOCK)
    counts = torch.empty(blocks, dtype=torch.int32, device=buffer.device)
    term = 0 if old is None else 1 if scale == 1.0 else 2
    other = buffer if old is None else old
    _add_and_count[(blocks,)](
        other, buffer, threshold, counts, size, scale, TERM=term, BLOCK=BLOCK, enable_fp_fusion=False
    )
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    found = int(ends[-1])
    places = torch.empty(found, dtype=torch.int32, device=buffer.device)
    values = torch.empty(found, device=buffer.device)
    if found:
        _compact[(blocks,)](buffer, threshold, ends, places, values, size, BLOCK=BLOCK)
    return places, values
