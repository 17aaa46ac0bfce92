"""Named tensors to flat buckets, in model order: the same on every rank, in every step and after a restart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Consecutive tensors laid end to end: names, shapes and where each begins; `size` elements in all."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    starts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, items: list[tuple[str, Shape]]) -> Bucket:
        """Return the bucket that holds `items` in their order."""
        starts, size = [], 0
        for _, shape in items:
            starts.append(size)
            size += math.prod(shape)
        return cls(tuple(name for name, _ in items), tuple(shape for _, shape in items), tuple(starts), size)

    def flatten(self, tensors: Mapping[str, Tensor], out: Tensor) -> Tensor:
        """Copy the named tensors end to end into `out` (fp32, size elements) and return it."""
        for name, shape, start in zip(self.names, self.shapes, self.starts, strict=True):
            length = math.prod(shape)
            out[start : start + length].copy_(tensors[name].detach().reshape(-1))
        return out

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the named tensors as views of `flat`."""
        parts = {}
        for name, shape, start in zip(self.names, self.shapes, self.starts, strict=True):
            parts[name] = flat[start : start + math.prod(shape)].view(shape)
        return parts

    def active(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        """Return the ascending flat positions inside the update set, or None when no tensor here is masked."""
        if not any(name in masks for name in self.names):
            return None
        flags = [
            masks[name].reshape(-1) if name in masks else torch.ones(math.prod(shape), dtype=torch.bool)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        device = next(masks[name].device for name in self.names if name in masks)
        return torch.nonzero(torch.cat([flag.to(device) for flag in flags])).flatten()


def build_buckets(shapes: Mapping[str, Shape], bucket_elements: int, dense_below: int) -> tuple[list[Bucket], Bucket]:
    """Return (buckets, small): 1-D tensors and those under `dense_below` elements go to `small`, which stays dense.

    Buckets are in model order, and leave from the last on, as backward finishes them. A bucket is closed when the next
    tensor would take it over `bucket_elements`, or over a quarter of that in the two that leave first and last: the
    wire waits for the selection of the one, the optimizer for the merge of the other. No tensor is cut.
    """
    small = [(name, shape) for name, shape in shapes.items() if len(shape) < 2 or math.prod(shape) < dense_below]
    alone = {name for name, _ in small}
    rest = [item for item in shapes.items() if item[0] not in alone]
    edge = bucket_elements // 4
    front = _fill(rest, edge)[:1]
    middle = rest[len(front[0]) :] if front else []
    back = _fill(middle[::-1], edge)[:1]
    middle = middle[: len(middle) - len(back[0])] if back else []
    groups = [*front, *(group[::-1] for group in _fill(middle[::-1], bucket_elements)[::-1]), *(g[::-1] for g in back)]
    return [Bucket.of(group) for group in groups], Bucket.of(small)


def _fill(items: list[tuple[str, Shape]], room: int) -> list[list[tuple[str, Shape]]]:
    """Return `items` in groups of at most `room` elements, or of one item that is larger."""
    groups: list[list[tuple[str, Shape]]] = []
    left = 0
    for name, shape in items:
        if not groups or math.prod(shape) > left:
            groups.append([])
            left = room
        groups[-1].append((name, shape))
        left -= math.prod(shape)
    return groups
