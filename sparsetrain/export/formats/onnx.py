"""For runtimes that are not torch."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import pathlib
import warnings
from collections.abc import Generator

import torch
from torch import Tensor, nn

from sparsetrain.export.format import Format
from sparsetrain.export.fresh import ONNX, onnx_session
from sparsetrain.export.program import ANY_NUMBER
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
        with _quiet():
            program = torch.onnx.export(
                trained.model, (trained.inputs,), dynamo=True, verbose=False, dynamic_shapes=ANY_NUMBER
            )
        assert program is not None
        model = program.model_proto
        for graph in (model.graph, *model.functions):
            for node in graph.node:
                del node.metadata_props[:]  # stack traces, with paths of this machine
        (folder / ONNX).write_bytes(model.SerializeToString())

    def read(self, trained: Trained, folder: pathlib.Path) -> nn.Module:
        """See Format."""
        return _Session(folder / ONNX)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep to itself what torch's exporter says of its own code and of packages that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Session(nn.Module):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.ask = onnx_session(path)

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(x)
