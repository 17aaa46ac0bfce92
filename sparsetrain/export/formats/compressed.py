"""Active weights and their positions in few bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.engine.checkpoint import Tensors
from sparsetrain.export.formats.packed import Packed
from sparsetrain.kernels import index_code


class Compressed(Packed):
    """Active weights and their positions, as Elias-Fano or a bitmap, whichever is shorter: near the masks' entropy."""

    layout = "compressed"
    lacking = "its masks leave nothing out"

    def packs(self, mask: Tensor) -> bool:
        """See Packed."""
        return True

    def parts(self, tensor: Tensor, mask: Tensor) -> Tensors:
        """See Packed."""
        flat = mask.flatten()
        places = torch.nonzero(flat).flatten().int()
        fano = index_code.elias_fano_bytes(len(places), len(flat)) < index_code.bitmap_bytes(len(flat))
        encode = index_code.encode_elias_fano if fano else index_code.encode_bitmap
        return {"values": tensor.flatten()[flat], "positions": encode(places, len(flat))}
