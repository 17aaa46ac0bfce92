"""Merge on CUDA: one launch per source, in order, without atomics, because the places of one source are unique."""

from __future__ import annotations

from collections.abc import Sequence

import triton  # pyrefly: ignore[missing-import]
import triton.language as tl  # pyrefly: ignore[missing-import]
from torch import Tensor

BLOCK = 1024  # entries per program


@triton.jit
def _add(indices, values, out, count, scale, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(indices + at, mask=inside, other=0)
    term = tl.load(values + at, mask=inside, other=0.0) * scale
    tl.store(out + place, tl.load(out + place, mask=inside, other=0.0) + term, mask=inside)


def merge_cuda(sources: Sequence[tuple[Tensor, Tensor]], out: Tensor, scale: float) -> Tensor:
    """Fill `out` as `kernels.merge` promises, and return it."""
    out.zero_()
    for indices, values in sources:
        count = indices.numel()
        if count:
            grid = (triton.cdiv(count, BLOCK),)
            _add[grid](indices, values, out, count, scale, BLOCK=BLOCK, enable_fp_fusion=False)
    return out
