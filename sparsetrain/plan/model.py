"""What a job's model is to the exchange: buckets of tensors and their update sets, without a weight in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from sparsetrain.config.job import Job
from sparsetrain.gradient.layout import Bucket, build_buckets
from sparsetrain.gradient.regimes.lowrank import WORTH
from sparsetrain.masks.distribution import ByShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One bucket: `size` coordinates, `active` of them in the update set; `left` and `right` numbers of lowrank's
    factors and of what travels whole beside them."""

    size: int
    active: int
    left: int
    right: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """`parts` in the order in which they leave (the last of the model first), `small` coordinates that travel dense,
    `weights` and `masked` of them, `active` in the end."""

    parts: tuple[Part, ...]
    small: int
    weights: int
    masked: int
    active: int


def model_of(job: Job) -> Model:
    """Return the model of a job as its masks are in the end. Raises what building it raises."""
    with torch.device("meta"):
        model = job.model.build()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    counts = _counts(job, model, shapes)
    buckets, small = build_buckets(shapes, job.exchange.bucket_elements, job.exchange.dense_below)
    masked = sum(math.prod(shapes[name]) for name in counts)
    return Model(
        parts=tuple(_part(bucket, counts, job.exchange.rank) for bucket in buckets[::-1]),
        small=small.size,
        weights=sum(math.prod(shape) for shape in shapes.values()),
        masked=masked,
        active=sum(counts.values()),
    )


def _counts(job: Job, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the active weights of each masked tensor; by uniform shares where the weights' values decide."""
    if job.masks is None:
        return {}
    names = [name for name in (model.maskable() if hasattr(model, "maskable") else shapes) if name in shapes]
    masked = {name: shapes[name] for name in names if len(shapes[name]) > 1}
    distribution = job.masks.distribution.build()
    if isinstance(distribution, ByShape):
        return distribution.counts(masked, job.masks.sparsity, dict)
    return {name: round((1 - job.masks.sparsity) * math.prod(shape)) for name, shape in masked.items()}


def _part(bucket: Bucket, counts: Mapping[str, int], rank: int) -> Part:
    active = left = right = 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size = math.prod(shape)
        own = counts.get(name, size)
        rows, columns = shape[0], size // shape[0]
        active += own
        if rank * (rows + columns) < WORTH * own:
            left, right = left + rank * rows, right + rank * columns
        else:
            left += own
    return Part(size=bucket.size, active=active, left=left, right=right)
