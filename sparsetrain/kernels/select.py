"""Exact top-k of a compensated gradient in about one pass over memory.

`torch.topk` on a whole buffer costs about a hundred memory passes. A threshold that is estimated a little low from a
sample turns the selection into one streaming pass (add, compare, compact, write the residual), and only the few
candidates that reach it are ranked. The result is exact whatever the sample was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsetrain.kernels import sampling, versions
from sparsetrain.kernels.reference.select import Range, select_cpu, select_device


@dataclasses.dataclass(frozen=True)
class Selection:
    """`indices` int32 ascending and unique, `values` fp32, both on the buffer's device.

    `finite` False: the sum held an infinity or not-a-number; indices are then 0, 1, 2 ..., and values zeros.
    """

    indices: Tensor
    values: Tensor
    finite: bool


def select(
    old: Tensor | None,
    buffer: Tensor,
    k: int,
    *,
    scale: float = 1.0,
    least: int | None = None,
    most: int | None = None,
    parts: Sequence[Tensor] = (),
) -> Selection:
    """Return the k elements of buffer + scale * old that are largest in magnitude; ties go to the lower index.

    `buffer` (fp32, 1-D, contiguous, at most 2^31 - 1 elements) becomes that sum with the selected places zeroed: the
    new residual. `old` (the same shape, or None for zeros) is only read. Scale 1 is a plain add, any other a multiply
    and an add, each rounded. Zeros are legal entries. k in 1..n.

    `parts`: tensors (fp32, contiguous, on the buffer's device) that stand for the buffer's content, end to end; what
    the buffer holds is then overwritten, and nothing needs to be copied together first.

    With `least` <= k <= `most`, the count that an unbiased sampled threshold for k gives is accepted when it lies
    between them; otherwise exactly k are taken. Then nothing is ranked, and the pass is quicker still.

    Where the sum is not finite anywhere, `finite` is False and the buffer may hold anything. Raises ValueError for
    wrong k, limits, dtypes, shapes or devices. Local: no rank waits for another.
    """
    size = _check(old, buffer, k, parts)
    limits = _limits(k, least, most)
    with torch.no_grad():
        native = versions.native() if buffer.device.type == "cpu" else None
        plan = sampling.plan(size, k)
        if native is not None:
            chosen = native.select(old, buffer, k, scale, limits, plan, parts)
        else:
            _gather(parts, buffer)
            chosen = _slower(old, buffer, k, scale, limits, plan)
    return _selection(chosen, k, buffer)


def select_blocks(
    old: Tensor | None, buffer: Tensor, k: int, block: int, *, scale: float = 1.0, parts: Sequence[Tensor] = ()
) -> Selection:
    """Return k elements of buffer + scale * old: of each `block` neighbours the largest, as `select` defines them.

    The block from begin to end (the last may be shorter) has the share k * end // size - k * begin // size, which
    may be 0; it is summed all the same. Everything else is as with `select`. Raises ValueError also for block < 1.
    """
    size = _check(old, buffer, k, parts)
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    if block >= size:
        return select(old, buffer, k, scale=scale, parts=parts)
    with torch.no_grad():
        native = versions.native() if buffer.device.type == "cpu" else None
        if native is not None:
            chosen = native.select_blocks(old, buffer, k, block, scale, parts)
        else:
            _gather(parts, buffer)
            chosen = _slower_blocks(old, buffer, k, block, scale)
    return _selection(chosen, k, buffer)


def _selection(chosen: tuple[Tensor, Tensor] | None, k: int, buffer: Tensor) -> Selection:
    if chosen is None:
        indices = torch.arange(k, dtype=torch.int32, device=buffer.device)
        return Selection(indices, torch.zeros(k, dtype=torch.float32, device=buffer.device), False)
    indices, values = chosen
    return Selection(indices, values, True)


def _gather(parts: Sequence[Tensor], buffer: Tensor) -> None:
    start = 0
    for part in parts:
        buffer[start : start + part.numel()].copy_(part.reshape(-1))
        start += part.numel()


def _slower(
    old: Tensor | None, buffer: Tensor, k: int, scale: float, limits: Range | None, plan: sampling.Plan | None
) -> tuple[Tensor, Tensor] | None:
    if buffer.device.type == "cpu":
        return select_cpu(old, buffer, k, scale, limits, plan)
    if buffer.device.type == "cuda" and versions.triton():
        from sparsetrain.kernels.triton.select import select_cuda  # an optional package

        return select_cuda(old, buffer, k, scale, limits, plan)
    return select_device(old, buffer, k, scale, limits, plan)


def _slower_blocks(
    old: Tensor | None, buffer: Tensor, k: int, block: int, scale: float
) -> tuple[Tensor, Tensor] | None:
    size = buffer.numel()
    indices, values = [], []
    for begin in range(0, size, block):
        end = min(begin + block, size)
        share = k * end // size - k * begin // size
        part = buffer[begin:end]
        before = None if old is None else old[begin:end]
        wanted = max(1, share)
        chosen = _slower(before, part, wanted, scale, None, sampling.plan(end - begin, wanted))
        if chosen is None:
            return None
        if share:
            indices.append(chosen[0] + begin)
            values.append(chosen[1])
        else:
            part[chosen[0].long()] = chosen[1]
    return torch.cat(indices), torch.cat(values)


def _limits(k: int, least: int | None, most: int | None) -> Range | None:
    if least is None and most is None:
        return None
    if least is None or most is None or not least <= k <= most:
        raise ValueError(f"least and most must hold k between them: {least} <= {k} <= {most}")
    return max(least, 1), most


def _check(old: Tensor | None, buffer: Tensor, k: int, parts: Sequence[Tensor]) -> int:
    """Return the number of elements."""
    for name, tensor in (("buffer", buffer), ("old", old)):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be fp32, 1-D and contiguous, not {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.shape != buffer.shape or tensor.device != buffer.device:
            raise ValueError(f"old is {tuple(tensor.shape)} on {tensor.device}, buffer {tuple(buffer.shape)}")
    size = buffer.numel()
    for part in parts:
        if part.dtype != torch.float32 or part.device != buffer.device or not part.is_contiguous():
            raise ValueError(f"a part must be fp32, contiguous and on {buffer.device}, not {part.dtype} {part.device}")
    if parts and sum(part.numel() for part in parts) != size:
        raise ValueError(f"parts hold {sum(part.numel() for part in parts)} elements, the buffer {size}")
    if size >= 1 << 31:
        raise ValueError(f"{size} elements: int32 indices reach 2^31 - 1")
    if not 1 <= k <= size:
        raise ValueError(f"k must be in 1..{size}, not {k}")
    return size
