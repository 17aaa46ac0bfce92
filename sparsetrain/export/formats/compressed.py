"""Active weights and their positions in few bytes."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import Tensor

from sparsetrain.engine.checkpoint import Tensors
from sparsetrain.export.format import write_weights
from sparsetrain.export.formats.packed import Packed
from sparsetrain.export.trained import Trained
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

    def write(self, trained: Trained, folder: pathlib.Path) -> None:
        """See Format. All stands end to end: of a file with a tensor for each part a small model's names would make up
        a fifth."""
        masks = self.packed(trained)
        values: dict[str, list[Tensor]] = {}
        entries: dict[str, list[list[Any]]] = {}
        positions = [torch.empty(0, dtype=torch.uint8)]
        for name, tensor in trained.tensors.items():
            kind = str(tensor.dtype).removeprefix("torch.")
            flat = tensor.flatten()
            entry: list[Any] = [name, list(tensor.shape)]
            if name in masks:
                parts = self.parts(tensor, masks[name])
                flat = parts["values"]
                entry.append(len(flat))
                positions.append(parts["positions"])
            values.setdefault(kind, []).append(flat)
            entries.setdefault(kind, []).append(entry)
        written = {f"values.{kind}": torch.cat(parts) for kind, parts in values.items()}
        told = {"layout": self.layout, "tensors": entries, "tied": trained.tied}
        write_weights(folder, {**written, "positions": torch.cat(positions)}, told)
