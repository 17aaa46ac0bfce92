"""Tensors that travel dense: 1-D ones and those of few elements, all of them in one message.

Their values are written like all others; what rounding takes away is added to the next gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.packed import Packed
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.world import World
from sparsetrain.gradient.feedback.base import Feedback
from sparsetrain.gradient.layout import Bucket

REST = "rest"  # in a state, what rounding took away


class Small:
    """The bucket of small tensors, its mean, and what it keeps: `rest` of this rank, `state` of the error feedback."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        self.flat = torch.zeros(bucket.size, dtype=torch.float32, device=device)
        self.mean = torch.zeros_like(self.flat)
        self.rest = torch.zeros_like(self.flat)
        self.state: dict[str, Tensor] = {}
        self.next = (self.rest, self.state)
        self.update: Tensor | None = None  # bool, what is inside the update sets; None: everything
        self.packed = Packed(Packed.Config())

    def take(self, gradients: Mapping[str, Tensor], factor: float) -> None:
        """Make the message's content: the gradients times `factor`, and what earlier messages lost."""
        self.bucket.flatten(gradients, self.flat).mul_(factor).add_(self.rest)
        if self.update is not None:
            self.flat = torch.where(self.update, self.flat, 0.0)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Adopt the update sets: outside them zeros travel, and nothing is kept."""
        self.update = None
        active = self.bucket.active(masks)
        if active is None:
            return
        self.update = torch.zeros_like(self.flat, dtype=torch.bool).index_fill_(0, active.to(self.flat.device), True)
        self.rest = torch.where(self.update, self.rest, 0.0)
        for field, flat in self.state.items():
            self.state[field] = torch.where(self.update, flat, 0.0)

    def exchange(self, epoch: int, number: int, codec: Codec, world: World) -> Outcome:
        """Leave the mean over ranks in `mean`; `number` tells the bucket from others. Collective."""
        if self.bucket.size == 0:
            return Outcome()
        finite = bool(torch.isfinite(self.flat).all())
        if not finite:
            self.flat.zero_()  # no code writes what is not a number
        entries = Entries(None, self.flat, shared=True, finite=finite)
        return self.packed.exchange(entries, Frame(self.bucket.size, epoch, number), codec, world, self.mean)

    def stage(self, outcome: Outcome, feedback: Feedback) -> dict[str, Tensor]:
        """Return what the optimizer shall see, by name, and hold ready what `commit` keeps."""
        kept = outcome.leftover[0].values if outcome.leftover and feedback.fields else self.rest
        seen, state = feedback.dense(self.mean, self.state)
        self.next = (kept, state)
        return self.bucket.split(seen)

    def commit(self) -> None:
        """Make what was staged the present state."""
        self.rest, self.state = self.next

    def forget(self) -> None:
        """Keep nothing."""
        self.rest, self.state = torch.zeros_like(self.flat), {}

    def saved(self) -> dict[str, Tensor]:
        """Return copies of what is kept, as `field/parameter name`, 1-D."""
        return {
            f"{field}/{name}": part.reshape(-1).clone()
            for field, flat in {**self.state, REST: self.rest}.items()
            for name, part in self.bucket.split(flat).items()
        }

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `saved` returned. Raises ValueError, naming the tensor, when a size differs."""
        self.state = {}
        for key, tensor in saved.items():
            field, _, name = key.partition("/")
            if name in self.bucket.names:
                flat = self.state.setdefault(field, torch.zeros_like(self.flat))
                part = self.bucket.split(flat)[name].view(-1)
                if tensor.shape != part.shape:
                    raise ValueError(f"{field} of {name}: {tensor.numel()} values for {part.numel()} coordinates")
                part.copy_(tensor)
        self.rest = self.state.pop(REST, torch.zeros_like(self.flat))
