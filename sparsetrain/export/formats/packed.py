"""What the formats that load.py decodes share: masked tensors written in parts, all others dense."""

from __future__ import annotations

import abc
import copy
import pathlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsetrain.engine.checkpoint import Tensors
from sparsetrain.export import load
from sparsetrain.export.format import WEIGHTS, Format, write_weights
from sparsetrain.export.trained import Trained


class Packed(Format):
    """Writes each masked tensor that `packs` says as the named parts that `parts` makes of it."""

    decodes = True
    layout: ClassVar[str]  # as load.py knows it
    lacking: ClassVar[str]  # why a model with masks does not fit

    @abc.abstractmethod
    def packs(self, mask: Tensor) -> bool:
        """Return whether a tensor with this mask is written in parts."""

    @abc.abstractmethod
    def parts(self, tensor: Tensor, mask: Tensor) -> Tensors:
        """Return the parts of a tensor by the end of their name."""

    def unfit(self, trained: Trained) -> str:
        """See Format."""
        if not trained.masks.masks:
            return "the run has no masks"
        large = next((name for name, mask in trained.masks.masks.items() if mask.numel() > load.LARGEST), None)
        if large:
            return f"{large} has more than {load.LARGEST} weights"
        return "" if self.packed(trained) else self.lacking

    def write(self, trained: Trained, folder: pathlib.Path) -> None:
        """See Format."""
        masks, written, shapes = self.packed(trained), {}, {}
        for name, tensor in trained.tensors.items():
            if name not in masks:
                written[name] = tensor
                continue
            shapes[name] = list(tensor.shape)
            written |= {f"{name}.{end}": part for end, part in self.parts(tensor, masks[name]).items()}
        write_weights(folder, written, {"layout": self.layout, "shapes": shapes, "tied": trained.tied})

    def read(self, trained: Trained, folder: pathlib.Path) -> nn.Module:
        """See Format."""
        return load.attach(copy.deepcopy(trained.model), folder / WEIGHTS)

    def packed(self, trained: Trained) -> Tensors:
        """Return the masks of the tensors that are written in parts."""
        masks = trained.masks.masks
        return {name: mask for name, mask in masks.items() if not bool(mask.all()) and self.packs(mask)}


def as_matrix(tensor: Tensor) -> Tensor:
    """Return rows by everything else."""
    return tensor.reshape(tensor.shape[0], -1)


def row_starts(mask: Tensor) -> Tensor:
    """Return where the active entries of each row begin among all, and their number at the end, int32."""
    ends = mask.sum(1).cumsum(0)
    return torch.cat([torch.zeros(1, dtype=ends.dtype), ends]).int()
