"""Bit-packed gaps in plain numpy: blocks of equal width are packed together."""

from __future__ import annotations

import numpy as np

from sparsetrain.kernels.corrupt import CorruptCode

BLOCK = 128
AT_ONCE = 512  # blocks: their single bits take up to 2 MiB
WIDEST = 31


def gaps(places: np.ndarray) -> np.ndarray:
    """Return index - previous - 1 as int64 [blocks, 128], zeros past the last."""
    rows = np.zeros(-(-places.size // BLOCK) * BLOCK, dtype=np.int64)
    rows[: places.size] = np.diff(places.astype(np.int64), prepend=-1) - 1
    return rows.reshape(-1, BLOCK)


def widths(rows: np.ndarray) -> np.ndarray:
    """Return the bits of the largest gap of each row, int64 [blocks]."""
    return np.searchsorted(1 << np.arange(WIDEST + 1, dtype=np.int64), rows.max(axis=1, initial=0), side="right")


def layout(width: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Return at which byte each block starts, and the bytes of the whole."""
    sizes = BLOCK // 8 * width
    if width.size:
        sizes[-1] = ((count - 1) % BLOCK + 1) * int(width[-1]) + 7 >> 3
    ends = width.size + np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if width.size else 0


def encode(places: np.ndarray, total: int) -> np.ndarray:
    """Return the `total` bytes of ascending places."""
    rows = gaps(places)
    width = widths(rows)
    starts, _ = layout(width, places.size)
    # The last block is packed as if it were full; its unused gaps are zeros and are cut off.
    data = np.zeros(total + BLOCK // 8 * WIDEST, dtype=np.uint8)
    data[: width.size] = width
    for bits, members in _groups(width):
        single = rows[members][:, :, None] >> np.arange(bits) & 1
        packed = np.packbits(single.astype(np.uint8).reshape(members.size, -1), axis=1, bitorder="little")
        data[starts[members][:, None] + np.arange(packed.shape[1])] = packed
    return data[:total].copy()


def decode(data: np.ndarray, count: int) -> np.ndarray:
    """Return the places (int64 [count], perhaps past the bucket's end). Raises CorruptCode."""
    width = data[: -(-count // BLOCK)].astype(np.int64)
    if width.size and width.max() > WIDEST:
        raise CorruptCode(f"a gap of {int(width.max())} bits")
    starts, total = layout(width, count)
    if data.size != total:
        raise CorruptCode(f"{data.size} bytes instead of {total}")
    padded = np.concatenate([data, np.zeros(BLOCK // 8 * WIDEST, dtype=np.uint8)])
    rows = np.zeros((width.size, BLOCK), dtype=np.int64)
    # Past the end of the last block lie zeros of the padding, never another block.
    for bits, members in _groups(width):
        packed = padded[starts[members][:, None] + np.arange(BLOCK // 8 * bits)]
        single = np.unpackbits(packed, axis=1, bitorder="little").reshape(members.size, BLOCK, bits)
        rows[members] = single @ (1 << np.arange(bits, dtype=np.int64))
    if (widths(rows) != width).any() or rows.reshape(-1)[count:].any():
        raise CorruptCode("gaps are wider or narrower than their block says")
    return np.cumsum(rows.reshape(-1)[:count] + 1) - 1


def _groups(width: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return (width, blocks of that width) in portions that bound the memory; blocks of width 0 have no bytes."""
    found = []
    for bits in np.unique(width[width > 0]):
        members = np.flatnonzero(width == bits)
        found += [(int(bits), members[at : at + AT_ONCE]) for at in range(0, members.size, AT_ONCE)]
    return found
