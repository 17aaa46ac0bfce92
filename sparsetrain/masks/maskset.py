"""The masks of a run as one value: who is active, at which mask epoch, and a digest to compare across ranks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MaskSet:
    """`masks` maps parameter names, in model order, to bool tensors; `epoch` counts the updates so far."""

    masks: dict[str, Tensor]
    epoch: int = 0

    def counts(self) -> dict[str, int]:
        """Return the active weights of each tensor."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    def sparsity(self) -> float:
        """Return the share of masked tensors' weights that is inactive."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(self.counts().values()) / total if total else 0.0

    def packed(self) -> dict[str, Tensor]:
        """Return each mask as bits, uint8 of ceil(n / 8), first weight in the highest bit."""
        return {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in self.masks.items()}

    @classmethod
    def from_packed(cls, packed: Mapping[str, Tensor], like: Mapping[str, Tensor], epoch: int) -> MaskSet:
        """Return the masks of `packed`, with names, shapes and devices of `like`. Raises ValueError on a misfit."""
        masks = {}
        for name, tensor in like.items():
            if name not in packed:
                raise ValueError(f"no mask for {name}")
            bits = packed[name].cpu().numpy()
            if bits.dtype != np.uint8 or bits.shape != (-(-tensor.numel() // 8),):
                raise ValueError(f"mask of {name}: {bits.size} bytes of {bits.dtype} for {tensor.numel()} weights")
            flat = np.unpackbits(bits, count=tensor.numel()).astype(bool)
            masks[name] = torch.from_numpy(flat).view(tensor.shape).to(tensor.device)
        return cls(masks, epoch)

    def digest(self) -> bytes:
        """Return 16 bytes of blake2b over epoch, names, shapes and bits."""
        digest = hashlib.blake2b(f"epoch {self.epoch}".encode(), digest_size=16)
        for name, bits in self.packed().items():
            digest.update(f"{name} {tuple(self.masks[name].shape)}".encode())
            digest.update(bits.numpy().tobytes())
        return digest.digest()

    def first_difference(self, other: MaskSet) -> tuple[str, int] | None:
        """Return (name, flat index) of the first weight where the two differ, or None."""
        for name, mask in self.masks.items():
            different = torch.nonzero((mask != other.masks[name]).flatten())
            if different.numel():
                return name, int(different[0])
        return None
