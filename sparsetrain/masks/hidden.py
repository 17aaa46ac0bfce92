"""How the forward pass of most methods sees the weights: without those outside the forward set."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

import torch
from torch import nn

from sparsetrain.masks.maskset import MaskSet


@contextlib.contextmanager
def hidden(masks: MaskSet, parameters: Mapping[str, nn.Parameter]) -> Generator[None]:
    """Inside, weights outside the forward set are zero; afterwards they have their values back. Free where both sets
    are the same."""
    kept = {name: parameters[name].detach().clone() for name in masks.updates}
    with torch.no_grad():
        for name, weight in kept.items():
            parameters[name].copy_(torch.where(masks.masks[name], weight, 0.0))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                parameters[name].copy_(weight)
