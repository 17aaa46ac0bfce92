"""The compiled kernels as Python methods with the signatures of the reference. Calls release the interpreter lock."""

from __future__ import annotations

import ctypes
import pathlib
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsetrain.kernels.corrupt import CorruptCode
from sparsetrain.kernels.native.memory import Blocks
from sparsetrain.kernels.native.openmp import openmp_calls
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.kernels.reference.index_code import IndexCodes
from sparsetrain.kernels.reference.select import Range
from sparsetrain.kernels.reference.value_code import ValueCodes
from sparsetrain.kernels.sampling import Plan
from sparsetrain.kernels.shifts import Shifts

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
ARGUMENTS = {
    "st_select": [
        *(POINTER, POINTER, POINTER, INT, POINTER, LONG, LONG, FLOAT, INT),
        *(POINTER, LONG, LONG, INT, LONG, POINTER, POINTER),
    ],
    "st_select_blocks": [
        *(POINTER, POINTER, POINTER, INT, POINTER, LONG, LONG, LONG, FLOAT, INT),
        *(INT, POINTER, POINTER),
    ],
    "st_merge": [POINTER, POINTER, POINTER, INT, POINTER, LONG, FLOAT, INT],
    "st_combine": [POINTER, POINTER, LONG, POINTER, POINTER, LONG, POINTER, POINTER],
    "st_scatter_add": [POINTER, POINTER, LONG, POINTER, FLOAT, INT],
    "st_spmm": [*(POINTER,) * 4, LONG, LONG, POINTER, LONG, POINTER, POINTER, INT, INT],
    "st_sddmm": [*(POINTER,) * 3, LONG, LONG, POINTER, POINTER, LONG, POINTER, INT, INT],
    "st_conv": [*(POINTER,) * 3, LONG, *(POINTER,) * 4, INT],
    "st_conv_gradient": [POINTER, POINTER, LONG, *(POINTER,) * 4, INT],
    "st_expand": [POINTER, POINTER, POINTER, LONG, LONG, POINTER, INT],
    "st_collect": [POINTER, POINTER, POINTER, LONG, LONG, POINTER, INT],
    "st_reorder": [POINTER, POINTER, LONG, POINTER, INT],
    "st_use_openmp": [POINTER, POINTER, POINTER],
    "st_checksum": [POINTER, LONG],
    "st_check_ascending": [POINTER, LONG, LONG],
    "st_encode_elias_fano": [POINTER, LONG, INT, LONG, POINTER],
    "st_decode_elias_fano": [POINTER, LONG, LONG, LONG, INT, POINTER],
    "st_deltas_bytes": [POINTER, LONG],
    "st_encode_deltas": [POINTER, LONG, POINTER],
    "st_decode_deltas": [POINTER, LONG, LONG, LONG, POINTER],
    "st_encode_block16": [POINTER, LONG, LONG, POINTER],
    "st_decode_block16": [POINTER, LONG, LONG, POINTER],
    "st_encode_bitmap": [POINTER, LONG, LONG, POINTER],
    "st_decode_bitmap": [POINTER, LONG, LONG, LONG, POINTER],
    "st_decode_fp32": [POINTER, LONG, POINTER],
    "st_encode_bf16": [POINTER, LONG, POINTER],
    "st_decode_bf16": [POINTER, LONG, POINTER],
    "st_encode_int8": [POINTER, LONG, POINTER],
    "st_decode_int8": [POINTER, LONG, POINTER],
    "st_encode_int4": [POINTER, LONG, POINTER],
    "st_decode_int4": [POINTER, LONG, POINTER],
}
RESULTS = {
    "st_select": LONG,
    "st_select_blocks": LONG,
    "st_combine": LONG,
    "st_scatter_add": None,
    "st_use_openmp": None,
    "st_expand": None,
    "st_collect": None,
    "st_reorder": None,
    "st_deltas_bytes": LONG,
    "st_checksum": ctypes.c_uint64,
    **{name: None for name in ARGUMENTS if name.startswith("st_encode")},
}
NOT_FINITE = -1
NOT_FINITE_VALUES = "values that are not finite"
SLACK = 128  # elements past the last candidate that a vector store may touch


class Library(IndexCodes, ValueCodes):
    """One loaded library. Arguments are checked by the functions of `kernels`; here they are only handed on."""

    def __init__(self, path: pathlib.Path) -> None:
        """Load the library at `path`. Raises OSError when it cannot be loaded, AttributeError for a strange one."""
        self.path = path
        self.calls = ctypes.CDLL(str(path))
        self.blocks = Blocks()
        for name, arguments in ARGUMENTS.items():
            function = getattr(self.calls, name)
            function.argtypes, function.restype = arguments, RESULTS.get(name, INT)
        shared = openmp_calls()
        if shared is not None:
            self.calls.st_use_openmp(*shared)

    def select(
        self,
        old: Tensor | None,
        buffer: Tensor,
        k: int,
        scale: float,
        limits: Range | None,
        plan: Plan | None,
        parts: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor] | None:
        """Return (indices, values) as `kernels.select` promises, None for a sum that is not finite."""
        size = buffer.numel()
        least, most = limits or (0, 0)
        most = min(most, size)
        ranks = (plan.count, plan.low, plan.middle, plan.high) if plan else (0, 0, 0, 0)
        room = max(k, most, plan.room if plan else 0)
        indices, values = self.blocks.pair(room + SLACK)
        chosen = self.calls.st_select(
            *(*_fresh(old, parts), buffer.data_ptr(), size, k, scale, scale != 1.0),
            *((LONG * 4)(*ranks), least, most),
            *(torch.get_num_threads(), room, indices.data_ptr(), values.data_ptr()),
        )
        if chosen == NOT_FINITE:
            return None
        if chosen < 0:
            raise MemoryError(f"no scratch memory to select {k} of {size} elements")
        return indices[:chosen], values[:chosen]

    def select_blocks(
        self, old: Tensor | None, buffer: Tensor, k: int, block: int, scale: float, parts: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor] | None:
        """Return (indices, values) as `kernels.select_blocks` promises, None for a sum that is not finite."""
        size = buffer.numel()
        indices, values = self.blocks.pair(k)
        chosen = self.calls.st_select_blocks(
            *(*_fresh(old, parts), buffer.data_ptr(), size, k, block, scale, scale != 1.0),
            *(torch.get_num_threads(), indices.data_ptr(), values.data_ptr()),
        )
        if chosen == NOT_FINITE:
            return None
        if chosen < 0:
            raise MemoryError(f"no scratch memory to select {k} of {size} elements in blocks of {block}")
        return indices, values

    def scatter_add(self, out: Tensor, indices: Tensor, values: Tensor, scale: float) -> Tensor:
        """Change `out` as `kernels.scatter_add` promises, and return it."""
        addresses = (indices.data_ptr(), values.data_ptr(), indices.numel(), out.data_ptr())
        self.calls.st_scatter_add(*addresses, scale, torch.get_num_threads())
        return out

    def merge(self, sources: Sequence[tuple[Tensor, Tensor]], out: Tensor, scale: float) -> Tensor:
        """Fill `out` as `kernels.merge` promises, and return it."""
        count = len(sources)
        indices = (POINTER * count)(*(places.data_ptr() for places, _ in sources))
        values = (POINTER * count)(*(values.data_ptr() for _, values in sources))
        counts = (LONG * count)(*(places.numel() for places, _ in sources))
        threads = torch.get_num_threads()
        if self.calls.st_merge(indices, values, counts, count, out.data_ptr(), out.numel(), scale, threads):
            raise MemoryError(f"no memory to merge {count} sources")
        return out

    def combine(self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `kernels.combine` promises."""
        room = left[0].numel() + right[0].numel()
        indices, values = torch.empty(room, dtype=torch.int32), torch.empty(room, dtype=torch.float32)
        given = [part for at, v in (left, right) for part in (at.data_ptr(), v.data_ptr(), at.numel())]
        count = self.calls.st_combine(*given, indices.data_ptr(), values.data_ptr())
        return indices[:count], values[:count]

    def spmm(self, pattern: Pattern, values: Tensor, x: Tensor, bias: Tensor | None, together: bool) -> Tensor:
        """Return what `kernels.spmm` promises."""
        y = _empty((len(x), pattern.rows), torch.float32)
        matrix = (*_laid(pattern), values.data_ptr(), pattern.rows, pattern.width)
        given = (x.data_ptr(), len(x), None if bias is None else bias.data_ptr())
        if self.calls.st_spmm(*matrix, *given, y.data_ptr(), together, torch.get_num_threads()):
            raise MemoryError(f"no scratch memory for {pattern.rows} x {pattern.width} weights")
        return y

    def sddmm(self, pattern: Pattern, x: Tensor, dy: Tensor, together: bool) -> Tensor:
        """Return what `kernels.sddmm` promises."""
        gradient = (_empty if len(x) else _zeros)(pattern.count, torch.float32)
        given = (x.data_ptr(), dy.data_ptr(), len(x), gradient.data_ptr(), together, torch.get_num_threads())
        if self.calls.st_sddmm(*_laid(pattern), pattern.rows, pattern.width, *given):
            raise MemoryError(f"no scratch memory for {pattern.rows} x {pattern.width} weights")
        return gradient

    def conv(self, shifts: Shifts, values: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return what `kernels.conv` promises; `values` in the order of the shifts."""
        y = _empty((len(x), shifts.rows, *shifts.sizes[5:]), torch.float32)
        sizes = torch.tensor([len(x), *shifts.sizes])
        weights = (shifts.starts.data_ptr(), shifts.offsets.data_ptr(), values.data_ptr(), shifts.rows)
        given = (x.data_ptr(), sizes.data_ptr(), None if bias is None else bias.data_ptr())
        if self.calls.st_conv(*weights, *given, y.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"no scratch memory for an image of {shifts.sizes[:3]}")
        return y

    def conv_gradient(self, shifts: Shifts, x: Tensor, dy: Tensor) -> Tensor:
        """Return what `kernels.conv_gradient` promises."""
        gradient = (_empty if len(x) else _zeros)(shifts.offsets.numel(), torch.float32)
        sizes = torch.tensor([len(x), *shifts.sizes])
        given = (shifts.rows, x.data_ptr(), dy.data_ptr(), sizes.data_ptr(), gradient.data_ptr())
        weights = (shifts.starts.data_ptr(), shifts.offsets.data_ptr())
        if self.calls.st_conv_gradient(*weights, *given, torch.get_num_threads()):
            raise MemoryError(f"no scratch memory for an image of {shifts.sizes[:3]}")
        return gradient

    def expand(self, pattern: Pattern, values: Tensor) -> Tensor:
        """Return what `kernels.expand` promises."""
        out = _empty((pattern.rows, pattern.width), torch.float32)
        given = (*_laid(pattern)[:2], values.data_ptr(), pattern.rows, pattern.width, out.data_ptr())
        self.calls.st_expand(*given, torch.get_num_threads())
        return out

    def collect(self, pattern: Pattern, dense: Tensor) -> Tensor:
        """Return what `kernels.collect` promises."""
        values = _empty(pattern.count, torch.float32)
        given = (*_laid(pattern)[:2], dense.data_ptr(), pattern.rows, pattern.width, values.data_ptr())
        self.calls.st_collect(*given, torch.get_num_threads())
        return values

    def reorder(self, values: Tensor, order: Tensor) -> Tensor:
        """Return what `kernels.turned` promises."""
        out = _empty(order.numel(), torch.float32)
        self.calls.st_reorder(
            values.data_ptr(), order.data_ptr(), order.numel(), out.data_ptr(), torch.get_num_threads()
        )
        return out

    def checksum(self, data: Tensor) -> int:
        """Return the unfolded 64-bit sum."""
        return self.calls.st_checksum(data.data_ptr(), data.numel())

    def check_ascending(self, indices: Tensor, size: int) -> bool:
        """See IndexCodes; so for all that follow."""
        return bool(self.calls.st_check_ascending(indices.data_ptr(), indices.numel(), size))

    def encode_elias_fano(self, indices: Tensor, low: int, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_elias_fano(indices.data_ptr(), indices.numel(), low, total, data.data_ptr())
        return data

    def decode_elias_fano(self, data: Tensor, count: int, size: int, low: int) -> Tensor:
        places = _empty(count, torch.int32)
        _accept(self.calls.st_decode_elias_fano(data.data_ptr(), data.numel(), count, size, low, places.data_ptr()))
        return places

    def deltas_bytes(self, indices: Tensor) -> int:
        return self.calls.st_deltas_bytes(indices.data_ptr(), indices.numel())

    def encode_deltas(self, indices: Tensor, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_deltas(indices.data_ptr(), indices.numel(), data.data_ptr())
        return data

    def decode_deltas(self, data: Tensor, count: int, size: int) -> Tensor:
        places = _empty(count, torch.int32)
        _accept(self.calls.st_decode_deltas(data.data_ptr(), data.numel(), count, size, places.data_ptr()))
        return places

    def encode_block16(self, indices: Tensor, size: int, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_block16(indices.data_ptr(), indices.numel(), size, data.data_ptr())
        return data

    def decode_block16(self, data: Tensor, count: int, size: int) -> Tensor:
        places = _empty(count, torch.int32)
        _accept(self.calls.st_decode_block16(data.data_ptr(), count, size, places.data_ptr()))
        return places

    def encode_bitmap(self, indices: Tensor, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_bitmap(indices.data_ptr(), indices.numel(), total, data.data_ptr())
        return data

    def decode_bitmap(self, data: Tensor, count: int, size: int) -> Tensor:
        places = _empty(count, torch.int32)
        _accept(self.calls.st_decode_bitmap(data.data_ptr(), data.numel(), count, size, places.data_ptr()))
        return places

    def decode_fp32(self, data: Tensor, count: int) -> Tensor:
        values = _empty(count, torch.float32)
        _accept(self.calls.st_decode_fp32(data.data_ptr(), count, values.data_ptr()), NOT_FINITE_VALUES)
        return values

    def encode_bf16(self, values: Tensor, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_bf16(values.data_ptr(), values.numel(), data.data_ptr())
        return data

    def decode_bf16(self, data: Tensor, count: int) -> Tensor:
        values = _empty(count, torch.float32)
        _accept(self.calls.st_decode_bf16(data.data_ptr(), count, values.data_ptr()), NOT_FINITE_VALUES)
        return values

    def encode_int8(self, values: Tensor, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_int8(values.data_ptr(), values.numel(), data.data_ptr())
        return data

    def decode_int8(self, data: Tensor, count: int) -> Tensor:
        values = _empty(count, torch.float32)
        _accept(self.calls.st_decode_int8(data.data_ptr(), count, values.data_ptr()))
        return values

    def encode_int4(self, values: Tensor, total: int) -> Tensor:
        data = _empty(total, torch.uint8)
        self.calls.st_encode_int4(values.data_ptr(), values.numel(), data.data_ptr())
        return data

    def decode_int4(self, data: Tensor, count: int) -> Tensor:
        values = _empty(count, torch.float32)
        _accept(self.calls.st_decode_int4(data.data_ptr(), count, values.data_ptr()))
        return values


def _fresh(old: Tensor | None, parts: Sequence[Tensor]) -> tuple[object, ...]:
    """Return the address of `old`, the addresses of the parts, their lengths and their number, for a call."""
    count = len(parts)
    addresses = (POINTER * count)(*(part.data_ptr() for part in parts))
    lengths = (LONG * count)(*(part.numel() for part in parts))
    return None if old is None else old.data_ptr(), addresses, lengths, count


def _laid(pattern: Pattern) -> tuple[int, int, int]:
    return pattern.starts.data_ptr(), pattern.columns.data_ptr(), pattern.segments.data_ptr()


def _zeros(count: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(count, dtype=dtype, device="cpu")


def _empty(count: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # Whatever default device and type the caller's program has set: an address on the CPU is handed on.
    return torch.empty(count, dtype=dtype, device="cpu")


def _accept(verdict: int, problem: str = "bytes that no encoder of this count and size writes") -> None:
    if verdict:
        raise CorruptCode(problem)
