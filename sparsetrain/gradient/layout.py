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

    Buckets are filled from the end of the model: the first of its tensors are the last that backward finishes, and
    what is left for them is the smallest bucket, which nothing hides. A bucket is closed when the next tensor would
    take it over `bucket_elements`; no tensor is cut. The buckets are in model order.
    """
    small = [(name, shape) for name, shape in shapes.items() if len(shape) < 2 or math.prod(shape) < dense_below]
    alone = {name for name, _ in small}
    groups: list[list[tuple[str, Shape]]] = []
    room = 0
    for name, shape in reversed([item for item in shapes.items() if item[0] not in alone]):
        length = math.prod(shape)
        if not groups or length > room:
            groups.append([])
            room = bucket_elements
        groups[-1].append((name, shape))
        room -= length
    return [Bucket.of(group[::-1]) for group in groups[::-1]], Bucket.of(small)
