"""Bytes of text files; by default the source text of Python's own standard library, which is on every machine."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import pathlib
import sysconfig
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sparsetrain.config.errors import JobError
from sparsetrain.config.numbers import Number, Positive


class Text:
    """Windows of bytes from text files; the last part of the text is held out for evaluation."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`path` is a file or a glob; None takes the top-level modules of the standard library."""

        path: Annotated[str, Field(min_length=1)] | None = None
        context: Positive = 128  # bytes in a sample
        eval_fraction: Annotated[float, Number, Field(gt=0.0, lt=1.0)] = 0.1

    def __init__(self, config: Config) -> None:
        self.config = config
        pattern = config.path or str(pathlib.Path(sysconfig.get_path("stdlib")) / "*.py")
        files = sorted(path for path in glob.glob(pattern, recursive=True) if pathlib.Path(path).is_file())
        if not files:
            raise JobError(f"data.path: no file matches {pattern!r}")
        self.files = len(files)
        content = b"".join(pathlib.Path(path).read_bytes() for path in files)
        self.sha256 = hashlib.sha256(content).hexdigest()
        text = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
        held_out = int(len(text) * config.eval_fraction)
        self.train_text, self.eval_text = text[: len(text) - held_out], text[len(text) - held_out :]
        # A window needs one byte more than its context: the target of its last byte.
        self.train_size = (len(self.train_text) - 1) // config.context
        self.eval_size = (len(self.eval_text) - 1) // config.context
        if min(self.train_size, self.eval_size) < 1:
            raise JobError(f"data.path: {len(text)} bytes are too few for windows of {config.context} bytes")

        # A fixed random order: a short evaluation sees the whole held-out text, not its first file.
        self.eval_order = torch.randperm(self.eval_size, generator=torch.Generator().manual_seed(0))

    def describe(self) -> dict[str, object]:
        """Return the source, its size in bytes and its sha256."""
        source = self.config.path or "Python standard library (top-level modules)"
        size = len(self.train_text) + len(self.eval_text)
        return {"source": source, "files": self.files, "bytes": size, "sha256": self.sha256}

    def train_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (bytes, next bytes), int64 [len(indices), context]."""
        return self._windows(self.train_text, indices)

    def eval_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return held-out (bytes, next bytes), int64 [len(indices), context]."""
        return self._windows(self.eval_text, self.eval_order[indices])

    def _windows(self, text: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        at = indices[:, None] * self.config.context + torch.arange(self.config.context + 1)
        window = text[at].long()
        return window[:, :-1], window[:, 1:]
