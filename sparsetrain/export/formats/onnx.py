"""For runtimes that are not torch."""

from __future__ import annotations

import importlib.util
import pathlib

import torch
from torch import Tensor, nn

from sparsetrain.export.format import Format
from sparsetrain.export.fresh import ONNX, onnx_session
from sparsetrain.export.trained import Trained

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 2_000_000_000  # bytes; a file of protobuf holds less than 2^31


class Onnx(Format):
    """The dense model as ONNX, loaded back by onnxruntime; needs `pip install sparsetrain[onnx]`."""

    file = ONNX

    def unfit(self, trained: Trained) -> str:
        """See Format."""
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                return f"the package {package} is missing: pip install 'sparsetrain[onnx]'"
        return f"its {trained.dense_bytes} bytes are too many for one file" if trained.dense_bytes > LARGEST else ""

    @torch.no_grad()
    def write(self, trained: Trained, folder: pathlib.Path) -> None:
        """See Format."""
        shapes = ({0: torch.export.Dim.AUTO},)
        exported = torch.export.export(trained.model, (trained.inputs,), dynamic_shapes=shapes)
        program = torch.onnx.export(exported, (trained.inputs,), dynamo=True, verbose=False)
        assert program is not None
        (folder / ONNX).write_bytes(program.model_proto.SerializeToString())

    def read(self, trained: Trained, folder: pathlib.Path) -> nn.Module:
        """See Format."""
        return _Session(folder / ONNX)


class _Session(nn.Module):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.ask = onnx_session(path)

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(x)
