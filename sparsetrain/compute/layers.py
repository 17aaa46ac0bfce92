"""Which of a model's weights can be held as the values of their masks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from sparsetrain.compute.geometry import geometry_of
from sparsetrain.compute.layer import Layer


def layers_of(model: nn.Module, names: Iterable[str]) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers that multiply by the named weights, by weight, and of all others why there is none.

    From then on these layers' modules compute through them.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for field, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, field))
    parameters = dict(model.named_parameters())
    found: dict[str, Layer] = {}
    others: dict[str, str] = {}
    for name in names:
        own = owners.get(id(parameters[name]), [])
        if len(own) != 1 or own[0][1] != "weight":
            others[name] = "it is shared" if len(own) > 1 else "it is not a layer's weight"
            continue
        module = own[0][0]
        geometry = geometry_of(module)
        if geometry is None or "forward" in vars(module):
            others[name] = f"{type(module).__name__} is not a layer that is known"
        elif parameters[name].dtype != torch.float32:
            others[name] = f"it is {parameters[name].dtype}"
        else:
            found[name] = Layer(name, module, geometry)
    return found, others
