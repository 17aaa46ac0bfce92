"""One bucket's way through the exchange: its residual, its buffer and its update set, in U-coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.gradient.layout import Bucket


class Channel:
    """A bucket with its state. U-coordinates number the active positions only, so nothing can live outside the mask."""

    def __init__(self, index: int, bucket: Bucket, device: torch.device) -> None:
        self.index = index
        self.bucket = bucket
        self.flat = torch.zeros(bucket.size, dtype=torch.float32, device=device)
        self.active: Tensor | None = None
        self._allocate(bucket.size, device)

    def _allocate(self, size: int, device: torch.device) -> None:
        self.size = size
        self.residual = torch.zeros(size, dtype=torch.float32, device=device)
        # Unmasked, the flat gradient is the buffer itself; masked, the active part is gathered from it.
        self.buffer = torch.zeros(size, dtype=torch.float32, device=device)

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Fill the buffer with the active coordinates of the gradients."""
        if self.active is None:
            self.bucket.flatten(gradients, self.buffer)
        else:
            torch.index_select(self.bucket.flatten(gradients, self.flat), 0, self.active, out=self.buffer)

    def commit(self) -> None:
        """Make the buffer, which holds what was not sent, the residual."""
        self.residual, self.buffer = self.buffer, self.residual

    def spread(self, mean: Tensor) -> dict[str, Tensor]:
        """Return the named means in their shapes, zero at inactive places; valid until the next take."""
        if self.active is None:
            return self.bucket.split(mean)
        self.flat.zero_()
        self.flat[self.active] = mean
        return self.bucket.split(self.flat)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Adopt a new update set: residuals of coordinates active before and after stay, all others are zero."""
        dense = self._dense_residual()
        self.active = self.bucket.active(masks)
        self._allocate(self.bucket.size if self.active is None else self.active.numel(), dense.device)
        self.residual.copy_(dense if self.active is None else dense[self.active])

    def residuals(self) -> dict[str, Tensor]:
        """Return copies of the residuals by parameter name, in U-coordinates (1-D)."""
        return {name: part.clone() for name, part in self._by_name().items()}

    def load_residuals(self, residuals: Mapping[str, Tensor]) -> None:
        """Put back what `residuals` returned. Raises ValueError, naming the tensor, when a size differs."""
        for name, part in self._by_name().items():
            if name in residuals:
                if residuals[name].shape != part.shape:
                    raise ValueError(
                        f"residual of {name}: {residuals[name].numel()} values for {part.numel()} active coordinates"
                    )
                part.copy_(residuals[name])

    def _dense_residual(self) -> Tensor:
        if self.active is None:
            return self.residual
        dense = torch.zeros(self.bucket.size, dtype=torch.float32, device=self.residual.device)
        dense[self.active] = self.residual
        return dense

    def _by_name(self) -> dict[str, Tensor]:
        starts = torch.tensor([*self.bucket.starts, self.bucket.size], device=self.residual.device)
        if self.active is not None:
            starts = torch.searchsorted(self.active, starts)
        edges = starts.tolist()
        return {name: self.residual[edges[i] : edges[i + 1]] for i, name in enumerate(self.bucket.names)}
