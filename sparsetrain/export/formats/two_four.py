"""Two of every four neighbours, as sparse tensor cores want them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsetrain.engine.checkpoint import Tensors
from sparsetrain.export.formats.packed import Packed


class TwoFour(Packed):
    """Of every four inputs two values, and two bits for the place of each; load.py makes torch's 2:4 tensors of it."""

    layout = "2:4"
    lacking = "no masked matrix keeps at most two of every four inputs"

    def packs(self, mask: Tensor) -> bool:
        """See Packed."""
        if mask.ndim != 2 or mask.shape[1] % 4 or not bool(mask.any()):
            return False
        return int(mask.view(-1, 4).sum(1).max()) <= 2

    def parts(self, tensor: Tensor, mask: Tensor) -> Tensors:
        """See Packed; a group with fewer than two active weights is filled up with zeros."""
        first = torch.argsort(mask.view(-1, 4).int(), dim=1, descending=True, stable=True)[:, :2]
        places = first.sort(dim=1).values
        values = tensor.reshape(-1, 4).gather(1, places).view(tensor.shape[0], -1)
        codes = places.flatten().to(torch.uint8)
        fours = functional.pad(codes, (0, -len(codes) % 4)).view(-1, 4)
        return {"values": values, "places": fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6}
