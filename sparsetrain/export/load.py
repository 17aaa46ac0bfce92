"""Turns an export of sparsetrain back into tensors. Needs torch, numpy and safetensors, nothing else.

    state = load.state_dict()            # all tensors, dense: model.load_state_dict(state)
    load.attach(model)                   # the same; linear layers stored as CSR or BSR multiply by what is stored
    python load.py dense.safetensors     # writes them to a file

What is read is checked before it is used: anything else than an export raises BadExport with one line.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import sys
import warnings
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

VERSION = "1"
LAYOUTS = ("compressed", "csr", "bsr", "2:4")
LARGEST = (1 << 31) - 1  # weights of a tensor
ROOM, SPARSEST = 1 << 24, 1 << 16  # weights that any file may stand for, and those of each of its bytes
FILE = pathlib.Path(__file__).with_name("model.safetensors")


class BadExport(ValueError):
    """A file that is no export, or a damaged one; the message says what is wrong with it."""


def tensors(path: pathlib.Path | str = FILE) -> dict[str, Tensor]:
    """Return the tensors of an export by name, tied ones once: those of the layouts csr and bsr as torch's sparse
    matrices (rows by everything else), all others dense. Raises BadExport."""
    return _read(path)[0]


def state_dict(path: pathlib.Path | str = FILE) -> dict[str, Tensor]:
    """Return all tensors of an export dense, tied ones under each of their names. Raises BadExport."""
    found, shapes, tied = _read(path)
    with _failing(path):
        dense = {name: _dense(tensor).reshape(shapes.get(name, tensor.shape)) for name, tensor in found.items()}
    return {**dense, **{other: dense[first] for other, first in tied.items()}}


def attach(model: nn.Module, path: pathlib.Path | str = FILE) -> nn.Module:
    """Put the tensors into a model of the same architecture and return it; its linear layers whose weights are stored
    as sparse matrices become SparseLinear. Raises BadExport."""
    found, _, tied = _read(path)
    sparse = {name: tensor for name, tensor in found.items() if tensor.layout != torch.strided}
    sparse |= {other: sparse[first] for other, first in tied.items() if first in sparse}
    with _failing(path):
        model.load_state_dict(state_dict(path))
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and f"{name}.weight" in sparse:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, SparseLinear(sparse[f"{name}.weight"], layer.bias))
    return model


def semi_structured(path: pathlib.Path | str = FILE, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Return the matrices of the layout 2:4 as torch's SparseSemiStructuredTensor, on a CUDA device. Raises BadExport,
    and RuntimeError where there is no such device or torch does not take a shape."""
    found, shapes, _ = _read(path)
    return {name: torch.sparse.to_sparse_semi_structured(found[name].cuda().to(dtype)) for name in shapes}


class SparseLinear(nn.Module):
    """A linear layer whose weight is a sparse CSR or BSR matrix [outputs, inputs]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        y = (self.weight @ x.reshape(-1, x.shape[-1]).t()).t()
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1)


def elias_fano_low(count: int, size: int) -> int:
    """Return how many low bits of each position are written plainly: the choice that takes the fewest bytes."""
    return min((4, 8, 16), key=lambda low: _bytes(count, size, low))


def elias_fano_bytes(count: int, size: int) -> int:
    """Return the bytes of any `count` positions of `size`."""
    return _bytes(count, size, elias_fano_low(count, size))


def positions(data: np.ndarray, count: int, size: int) -> np.ndarray:
    """Return the `count` ascending positions below `size` (int64) that bytes hold: Elias-Fano where that takes fewer
    bytes than a bitmap, else a bitmap. Raises BadExport for bytes that no export has."""
    if not 0 <= count <= size <= LARGEST:
        raise BadExport(f"{count} positions of {size}")
    fano, bitmap = elias_fano_bytes(count, size), (size + 7) // 8
    if data.dtype != np.uint8 or data.shape != (min(fano, bitmap),):
        raise BadExport(f"{data.size} bytes of {data.dtype} for {count} positions of {size}, not {min(fano, bitmap)}")
    if fano >= bitmap:
        found = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    else:
        low = elias_fano_low(count, size)
        split = (count * low + 7) // 8
        high = np.flatnonzero(np.unpackbits(data[split:], bitorder="little"))
        if high.size != count:
            raise BadExport(f"{high.size} positions instead of {count}")
        found = (high - np.arange(count)) << low | _low_bits(data[:split], low, count)
    if found.size != count or (count and (found[-1] >= size or bool((found[1:] <= found[:-1]).any()))):
        raise BadExport(f"positions are not {count} ascending ones below {size}")
    return found


def _bytes(count: int, size: int, low: int) -> int:
    return (count * low + 7) // 8 + (count + ((size - 1) >> low) + 7) // 8 if count else 0


def _low_bits(data: np.ndarray, low: int, count: int) -> np.ndarray:
    if low == 16:
        return data.view("<u2").astype(np.int64)
    if low == 8:
        return data.astype(np.int64)
    if count % 2 and data[-1] >> 4:
        raise BadExport("bits are set past the last low part")
    return np.stack([data & 15, data >> 4], axis=1).reshape(-1)[:count].astype(np.int64)


def _read(path: pathlib.Path | str) -> tuple[dict[str, Tensor], dict[str, list[int]], dict[str, str]]:
    """Return tensors, the shapes of those that were packed, and which names stand for others."""
    with _failing(path), safe_open(str(path), "pt") as file:
        told = file.metadata() or {}
        layout, version = told.get("layout"), told.get("version")
        if told.get("format") != "sparsetrain" or layout not in LAYOUTS or version != VERSION:
            raise BadExport(f"is no export of layout {', '.join(LAYOUTS)}, version {VERSION}")
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        shapes, tied = json.loads(told.get("shapes", "{}")), json.loads(told["tied"])
        room = max(ROOM, SPARSEST * pathlib.Path(path).stat().st_size)
        if layout == "compressed":
            unpacked = _compressed(json.loads(told["tensors"]), stored, room)
        else:
            whole = {name: _shape(name, shape) for name, shape in shapes.items()}
            if sum(map(math.prod, whole.values())) > room:
                raise BadExport(f"more than {room} weights in a file of its size")
            unpacked = {name: _unpack(layout, name, shape, stored) for name, shape in whole.items()}
        if left := sorted(set(tied.values()) - set(stored) - set(unpacked)):
            raise BadExport(f"tied to {left[0]}, which is not there")
        return {**stored, **unpacked}, shapes, tied


@contextlib.contextmanager
def _failing(path: pathlib.Path | str) -> Generator[None]:
    try:
        yield
    except BadExport as error:
        raise BadExport(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise BadExport(f"{path}: {type(error).__name__}: {reason}") from error


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    whole = isinstance(shape, list) and all(type(part) is int and part >= 0 for part in shape)
    if not whole or math.prod(shape) > LARGEST:
        raise BadExport(f"{name}: {str(shape)[:60]} is no shape")
    return tuple(shape)


def _unpack(layout: str, name: str, shape: tuple[int, ...], stored: dict[str, Tensor]) -> Tensor:
    try:
        values = stored.pop(f"{name}.values")
        if layout == "2:4":
            return _two_four(values, stored.pop(f"{name}.places"), shape)
        return _sparse(layout, values, stored.pop(f"{name}.crow"), stored.pop(f"{name}.col"), shape)
    except (BadExport, RuntimeError) as error:
        raise BadExport(f"{name}: {str(error).splitlines()[0]}") from error


def _compressed(groups: dict[str, list[Any]], stored: dict[str, Tensor], room: int) -> dict[str, Tensor]:
    """Return the tensors whose values and positions stand end to end, values by their type."""
    data, found = stored.pop("positions").numpy(), {}
    for kind, entries in groups.items():
        values = stored.pop(f"values.{kind}")
        for name, shape, *kept in entries:
            whole = _shape(name, shape)
            size = math.prod(whole)
            count = kept[0] if kept else size
            room -= size
            if room < 0:
                raise BadExport(f"{name}: more weights than a file of its size stands for")
            if name in found or len(kept) > 1:
                raise BadExport(f"{name}: is there twice, or says more than its shape and count")
            if type(count) is not int or not 0 <= count <= size or values.numel() < count:
                raise BadExport(f"{name}: {str(count)[:20]} values of {size}, where {values.numel()} are left")
            flat, values = values[:count], values[count:]
            if kept:
                length = min(elias_fano_bytes(count, size), (size + 7) // 8)
                places, data = torch.from_numpy(positions(data[:length], count, size)), data[length:]
                flat = torch.zeros(size, dtype=flat.dtype).index_copy_(0, places, flat)
            found[name] = flat.view(whole)
        if values.numel():
            raise BadExport(f"{values.numel()} values of {kind} are left")
    if data.size:
        raise BadExport(f"{data.size} bytes of positions are left")
    return found


def _sparse(layout: str, values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, ...]) -> Tensor:
    size = (shape[0], math.prod(shape[1:]))
    make = torch.sparse_csr_tensor if layout == "csr" else torch.sparse_bsr_tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls them a beta
        return make(crow, col, values, size=size, check_invariants=True)


def _two_four(values: Tensor, data: Tensor, shape: tuple[int, ...]) -> Tensor:
    half = math.prod(shape) // 2
    if len(shape) != 2 or shape[1] % 4 or tuple(values.shape) != (shape[0], shape[1] // 2):
        raise BadExport(f"values are {tuple(values.shape)} for {shape}")
    if data.dtype != torch.uint8 or tuple(data.shape) != ((half + 3) // 4,):
        raise BadExport(f"places are {data.dtype} {tuple(data.shape)} for {half} values")
    codes = torch.stack([data >> shift & 3 for shift in (0, 2, 4, 6)], dim=1).view(-1)
    places = codes[:half].view(-1, 2).long()
    if bool((places[:, 0] >= places[:, 1]).any()) or bool(codes[half:].any()):
        raise BadExport("places of a pair are not ascending")
    dense = torch.zeros(math.prod(shape) // 4, 4, dtype=values.dtype)
    return dense.scatter_(1, places, values.reshape(-1, 2)).view(shape)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FILE.safetensors")
    try:
        save_file({name: tensor.clone() for name, tensor in state_dict().items()}, sys.argv[1])
    except (BadExport, OSError, SafetensorError) as bad:
        sys.exit(str(bad))
