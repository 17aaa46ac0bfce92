"""The masks of a run as one value: both sets of every tensor, the mask epoch, and a digest to compare across ranks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

UPDATE = "update/"  # before the name of a packed update set


@dataclasses.dataclass(frozen=True)
class MaskSet:
    """The forward set and the update set of each masked tensor, by parameter name in model order, at a mask epoch.

    `masks` are the forward sets: what the forward pass multiplies with. `updates` are the update sets, which hold
    them: what gets gradients and travels; a tensor that is not named there has one set for both.
    """

    masks: dict[str, Tensor]
    epoch: int = 0
    updates: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, update in self.updates.items():
            if bool((self.masks[name] & ~update).any()):
                raise ValueError(f"{name}: the forward set is not inside the update set")

    def update(self, name: str) -> Tensor:
        """Return the update set of a tensor, bool."""
        return self.updates.get(name, self.masks[name])

    @functools.cached_property
    def limits(self) -> dict[str, Tensor]:
        """Return the update sets that leave something out, by name: what a gradient exchange has to know."""
        return {name: update for name in self.masks if not bool((update := self.update(name)).all())}

    @functools.cached_property
    def densities(self) -> dict[str, tuple[float, float]]:
        """Return the density of the forward set and of the update set of each tensor."""
        return {
            name: (float(mask.sum()) / mask.numel(), float(self.update(name).sum()) / mask.numel())
            for name, mask in self.masks.items()
        }

    def reduced(self) -> MaskSet:
        """Return the same sets, with update sets named only where they differ from the forward set."""
        wider = {name: update for name, update in self.updates.items() if not torch.equal(update, self.masks[name])}
        return dataclasses.replace(self, updates=wider)

    def changes(self, new: MaskSet) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Return each tensor whose update set is another one in `new`: its name, this set and that one."""
        for name in new.masks:
            before, after = self.update(name), new.update(name)
            if not torch.equal(before, after):
                yield name, before, after

    def counts(self) -> dict[str, int]:
        """Return the active weights of each tensor."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    def sparsity(self) -> float:
        """Return the share of masked tensors' weights that is inactive."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(self.counts().values()) / total if total else 0.0

    def packed(self) -> dict[str, Tensor]:
        """Return each set as bits, uint8 of ceil(n / 8), first weight in the highest bit; update sets that differ from
        the forward set stand under `update/name`."""
        sets = {**self.masks, **{f"{UPDATE}{name}": update for name, update in self.updates.items()}}
        return {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in sets.items()}

    @classmethod
    def from_packed(cls, packed: Mapping[str, Tensor], like: Mapping[str, Tensor], epoch: int) -> MaskSet:
        """Return the masks of `packed`, with names, shapes and devices of `like`. Raises ValueError on a misfit."""
        masks, updates = {}, {}
        for name, tensor in like.items():
            if name not in packed:
                raise ValueError(f"no mask for {name}")
            masks[name] = _unpacked(name, packed[name], tensor)
            if f"{UPDATE}{name}" in packed:
                updates[name] = _unpacked(name, packed[f"{UPDATE}{name}"], tensor)
        return cls(masks, epoch, updates)

    def digest(self) -> bytes:
        """Return 16 bytes of blake2b over epoch, names, shapes and bits."""
        digest = hashlib.blake2b(f"epoch {self.epoch}".encode(), digest_size=16)
        for name, bits in self.packed().items():
            digest.update(f"{name} {tuple(self.masks[name.removeprefix(UPDATE)].shape)}".encode())
            digest.update(bits.numpy().tobytes())
        return digest.digest()

    def first_difference(self, other: MaskSet) -> tuple[str, int, bool] | None:
        """Return (name, flat index, own value) of the first weight where the two differ, or None.

        The name of an update set begins with `update/`.
        """
        for name, mask in self.masks.items():
            forward, update = (mask, other.masks[name]), (self.update(name), other.update(name))
            for place, (own, theirs) in ((name, forward), (UPDATE + name, update)):
                different = torch.nonzero((own != theirs).flatten())
                if different.numel():
                    index = int(different[0])
                    return place, index, bool(own.flatten()[index])
        return None


def spread(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return a tensor of the mask's shape with `values` at its places and zeros elsewhere; what is whole already as it
    is."""
    if mask is None or values.shape == mask.shape:
        return values
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter_(mask, values)


def whole(tensor: Tensor, update: Tensor | None) -> Tensor:
    """Return a weight in its shape: a run may hold the values of its update set alone."""
    if update is None or not tensor.ndim == 1 < update.ndim or len(tensor) != int(update.sum()):
        return tensor
    return spread(tensor, update)


def _unpacked(name: str, packed: Tensor, like: Tensor) -> Tensor:
    bits = packed.cpu().numpy()
    if bits.dtype != np.uint8 or bits.shape != (-(-like.numel() // 8),):
        raise ValueError(f"mask of {name}: {bits.size} bytes of {bits.dtype} for {like.numel()} weights")
    flat = np.unpackbits(bits, count=like.numel()).astype(bool)
    return torch.from_numpy(flat).view(like.shape).to(like.device)
