"""How long a forward pass takes with each export, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsetrain.bench.table import interleave, median

ROUNDS = 30
SECONDS = 1.0  # of measuring a module, about


@torch.no_grad()
def medians(modules: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """Return the median seconds of a forward pass of each module that takes so many samples; they take turns."""
    first = {name: seconds for name, module in modules.items() if (seconds := _seconds(module, inputs)) is not None}
    rounds = max(3, min(ROUNDS, int(SECONDS / max(first.values(), default=SECONDS))))
    return median(interleave({name: lambda m=modules[name]: m(inputs) for name in first}, rounds))


def _seconds(module: nn.Module, inputs: Tensor) -> float | None:
    """Return the seconds of a second pass; None where the module does not take the inputs: a program may be of so many
    samples and no others."""
    try:
        module(inputs)
    except Exception:  # whatever a program, or a user's model, does
        return None
    began = time.perf_counter()
    module(inputs)
    return max(time.perf_counter() - began, 1e-9)
