"""All tensors in their dense shape."""

from __future__ import annotations

import copy
import pathlib

from safetensors.torch import load_file
from torch import nn

from sparsetrain.export.format import WEIGHTS, Format, write_weights
from sparsetrain.export.trained import Trained


class Safetensors(Format):
    """Every tensor in its dense shape, zeros where the mask is out: what any tool reads."""

    def unfit(self, trained: Trained) -> str:
        """See Format."""
        return ""

    def write(self, trained: Trained, folder: pathlib.Path) -> None:
        """See Format."""
        write_weights(folder, trained.tensors, {"layout": "dense", "tied": trained.tied})

    def read(self, trained: Trained, folder: pathlib.Path) -> nn.Module:
        """See Format."""
        model, tensors = copy.deepcopy(trained.model), load_file(folder / WEIGHTS)
        model.load_state_dict({**tensors, **{name: tensors[first] for name, first in trained.tied.items()}})
        return model
