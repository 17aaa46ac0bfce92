"""A model as a torch.export program: it computes wherever torch is, without the class that the model is of."""

from __future__ import annotations

import io
import pathlib

import torch
from torch import Tensor, nn

PROGRAM = "program.pt2"
ANY_NUMBER = ({0: torch.export.Dim.AUTO},)  # of samples, where the model allows


@torch.no_grad()
def write_program(model: nn.Module, inputs: Tensor, path: pathlib.Path) -> None:
    """Write the model's program. Raises what torch.export does, and OSError."""
    exported = torch.export.export(model, (inputs,), dynamic_shapes=ANY_NUMBER)
    exported.example_inputs = None  # torch would pickle them; weights and graph are plain bytes and JSON
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of this machine
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    path.write_bytes(buffer.getvalue())


def read_program(path: pathlib.Path) -> nn.Module:
    """Return the module of a program that was written by this process, or by one that is trusted as much."""
    return torch.export.load(path).module()
