"""Bits per entry and throughput of every code, on what a model really sends."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.data.text import Text
from sparsetrain.kernels.select import select
from sparsetrain.models.gpt import GPT

STEPS, BATCH = 6, 8  # of the model: enough for the residual to hold more than one gradient
REPEAT = 8  # the message is small: so many in a row are timed
COLUMNS = (
    "indices",
    "values",
    "n",
    "density",
    "bits_per_entry",
    "value_error",
    "encode_dense_gb_per_s",
    "decode_dense_gb_per_s",
)


def measure(densities: Sequence[float], rounds: int) -> list[dict[str, Any]]:
    """Return a row per code and density; throughput is of the dense fp32 gradient that the message stands for.

    The gradient is that of a byte-level GPT on the default text, after a few steps of error feedback at the density.
    Raises ValueError for densities outside 0..1 or fewer than one round.
    """
    if rounds < 1 or any(not 0 < d <= 1 for d in densities):
        raise ValueError("want at least 1 round, and densities above 0 and at most 1")
    rows = []
    for density in densities:
        entries, size = _entries(density)
        for indices, values in itertools.product(registry.names("index_code"), registry.names("value_code")):
            rows.append({"indices": indices, "values": values, "n": size, "density": density})
            rows[-1] |= _figures(
                Codec(_code("index_code", indices), _code("value_code", values)), entries, size, rounds
            )
    return rows


def _code(kind: str, name: str) -> Any:
    cls: Any = registry.load(kind, name)
    return cls(cls.Config())


def _figures(codec: Codec, entries: Entries, size: int, rounds: int) -> dict[str, float]:
    frame = Frame(size, 0, 0)
    message = codec.encode(entries, frame)
    read = codec.decode(message, frame, 0)
    encode = _seconds(lambda: codec.encode(entries, frame), rounds)
    decode = _seconds(lambda: codec.decode(message, frame, 0), rounds)
    return {
        "bits_per_entry": 8 * message.numel() / len(entries),
        "value_error": float((read.values - entries.values).norm() / entries.values.norm()),
        "encode_dense_gb_per_s": 4e-9 * size / encode,
        "decode_dense_gb_per_s": 4e-9 * size / decode,
    }


def _seconds(call: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of one call."""
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(REPEAT):
            call()
        found.append((time.perf_counter() - began) / REPEAT)
    return statistics.median(found[1:])


def _entries(density: float) -> tuple[Entries, int]:
    """Return what the last of a few steps would send, and the size of the gradient."""
    torch.manual_seed(0)
    model, data = GPT(GPT.Config(layers=6, width=320, heads=5, context=128)), Text(Text.Config())
    parameters = [p for p in model.parameters() if p.ndim >= 2]
    residual: Tensor | None = None
    entries = Entries(None, torch.empty(0))
    for step in range(STEPS):
        model.zero_grad()
        places = torch.arange(BATCH) + step * BATCH
        model.loss(data.train_batch(places)).backward()
        buffer = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        chosen = select(residual, buffer, max(1, round(density * buffer.numel())))
        entries, residual = Entries(chosen.indices, chosen.values), buffer
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)
    assert residual is not None
    return entries, residual.numel()
