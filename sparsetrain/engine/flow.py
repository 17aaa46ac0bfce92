"""Flow: how much of an input of ones comes through a network of positive weights, and through which of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain.masks.maskset import MaskSet


def flow(model: Any, example: Tensor) -> dict[str, Tensor]:
    """Return dR/d|w| by parameter name, float64: R is the sum of the model's outputs for an input of ones like
    `example` with all parameters and buffers replaced by their absolute values, in evaluation mode.

    float64, because R is a product over all layers and leaves the range of float32. Where the input is whole numbers,
    ones are put in place of what embeddings give.
    """
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.abs_()
    if example.is_floating_point():
        ones = torch.ones_like(example, dtype=torch.float64)
    else:
        ones = torch.zeros_like(example)
        for module in twin.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    named = dict(twin.named_parameters())
    gradients = torch.autograd.grad(twin(ones).sum(), list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, gradients, strict=True))


def passes(found: Mapping[str, Tensor]) -> bool:
    """Return whether there is a flow at all: with positive weights and inputs more weight is more flow, unless
    something subtracts, as a layer norm does, which leaves nothing of an input of ones."""
    return all(bool((part >= 0).all()) for part in found.values()) and any(part.any() for part in found.values())


def effective_sparsity(model: Any, example: Tensor, masks: MaskSet) -> float | None:
    """Return the share of masked weights that are inactive or on no path from input to output, or None where paths
    cannot be followed: normalisation stops an input of ones, and a model may have no forward that takes one.

    A weight is on a path where the sum of outputs depends on it when masked weights are 1 or 0 by their masks, other
    weights 1 and biases 0 (Vysogorets and Kempe 2021 call the sparsity of what is left effective).
    """
    try:
        found = _paths(model, example, masks.masks)
    except Exception:  # the forward of a user's model may want anything, or not be there: training needs only its loss
        return None
    if not passes(found) and not passes(
        _paths(model, example, {name: torch.ones_like(m) for name, m in masks.masks.items()})
    ):
        return None
    alive = sum(int(((found[name] > 0) & mask).sum()) for name, mask in masks.masks.items())
    return 1.0 - alive / sum(mask.numel() for mask in masks.masks.values())


def _paths(model: Any, example: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the flow to each masked weight of a model of ones and zeros."""
    twin = copy.deepcopy(model)
    for name, parameter in twin.named_parameters():
        like = masks.get(name, parameter)  # which has the weight's shape also where only active values are held
        weight = like.ndim > 1  # biases stay 0, also those of a coupling
        ones = masks[name] if weight and name in masks else torch.full_like(like, float(weight), dtype=parameter.dtype)
        parameter.data = ones.to(parameter)
    found = flow(twin, example)
    return {name: found[name] for name in masks}
