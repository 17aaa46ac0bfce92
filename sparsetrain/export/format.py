"""What a format of export is: what it can hold, how it is written, and how it is loaded back."""

from __future__ import annotations

import abc
import json
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from sparsetrain.config.component import NoOptions
from sparsetrain.engine.checkpoint import write_tensors
from sparsetrain.export.trained import Trained

WEIGHTS = "model.safetensors"


class Unfit(ValueError):
    """A format that cannot hold a model, or not on this machine; the message says why in one line."""


class Format(abc.ABC):
    """One way to write a trained model into a folder of its own: `file` holds the weights; `decodes`: load.py is put
    beside it."""

    Config: ClassVar[Any] = NoOptions
    file: ClassVar[str] = WEIGHTS
    decodes: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abc.abstractmethod
    def unfit(self, trained: Trained) -> str:
        """Return in one line why this cannot hold the model, "" where it can; nothing is written."""

    @abc.abstractmethod
    def write(self, trained: Trained, folder: pathlib.Path) -> None:
        """Write the model into an empty folder. Raises Unfit and OSError."""

    @abc.abstractmethod
    def read(self, trained: Trained, folder: pathlib.Path) -> nn.Module:
        """Return what has been written as a module that computes what the model does. Raises Unfit where this machine
        lacks what that takes."""


def write_weights(folder: pathlib.Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Write tensors with what is to be known of them, as JSON, in the file's metadata. Raises OSError."""
    metadata = {
        key: each if isinstance(each, str) else json.dumps(each, separators=(",", ":")) for key, each in told.items()
    }
    write_tensors(folder / WEIGHTS, tensors, {"format": "sparsetrain", "version": "1", **metadata})
