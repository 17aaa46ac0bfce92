"""layers.jsonl: at every evaluation, the density of each masked tensor, and what part of it is new since the last."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from sparsetrain.masks.maskset import MaskSet
from sparsetrain.track.jsonl import JsonlSink
from sparsetrain.track.sink import Row

_BITS = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)  # set in each byte


class LayerSink:
    """Looks at rank 0's masks when a row of metrics has an evaluation. It keeps the last masks as bits, an eighth of a
    byte a weight."""

    def __init__(self, masks: Callable[[], MaskSet], path: pathlib.Path, step: int) -> None:
        self.masks = masks
        self.file = JsonlSink(JsonlSink.Config(), path, step)
        self.before: Mapping[str, Tensor] = {}

    def log(self, row: Row) -> None:
        """Append the layers of this step, where the row has an evaluation."""
        if not any(key.startswith("eval/") for key in row):
            return
        masks = self.masks()
        now, layers = masks.packed(), {"train/step": row["train/step"]}
        for name, mask in masks.masks.items():
            active = _count(now[name].numpy())
            layers[f"weights/{name}"] = mask.numel()
            layers[f"density/{name}"] = active / max(1, mask.numel())
            if name in self.before:
                grown = _count(now[name].numpy() & ~self.before[name].numpy())
                layers[f"churn/{name}"] = grown / max(1, active)
        self.before = now
        self.file.log(layers)

    def close(self, status: str) -> None:
        """Write what waits and close the file."""
        self.file.close(status)


def _count(bits: np.ndarray) -> int:
    return int(_BITS[bits].sum(dtype=np.int64))
