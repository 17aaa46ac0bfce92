"""Which units a trained model computes nothing with, and the same model without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.export.trained import Trained
from sparsetrain.masks.coupled import check_apart, places_of

Slices = list[tuple[str, Tensor]]


def kept_units(trained: Trained, couplings: Sequence[Coupling], silent: bool) -> dict[str, Tensor]:
    """Return the units of each coupling that stay, at least one, as ascending numbers.

    A unit goes when nothing that takes it in is active: no weight by its mask, or by its value where it has no mask.
    With `silent` it goes also when nothing that makes it is: its output is 0 then, where what stands between the two
    maps 0 to 0, as ReLU and GELU do. What is active only for units that have gone is not. Raises JobError for couplings
    that do not fit.
    """
    check_apart(couplings)
    shapes = {name: tuple(tensor.shape) for name, tensor in trained.tensors.items()}
    alive = {name: trained.masks.masks.get(name, tensor != 0).flatten() for name, tensor in trained.tensors.items()}
    alive = {name: each.clone() for name, each in alive.items()}
    made = {each.name: _all_places(each, each.makes, shapes) for each in couplings}
    read = {each.name: _all_places(each, each.reads, shapes) for each in couplings}
    kept = {each.name: torch.ones(each.units, dtype=torch.bool) for each in couplings}
    changed = True
    while changed:
        changed = False
        for each in couplings:
            gone = torch.zeros(each.units, dtype=torch.bool)
            if each.reads:
                gone |= ~_any(alive, read[each.name])
            if silent:
                gone |= ~_any(alive, made[each.name])
            gone &= kept[each.name]
            if bool((gone == kept[each.name]).all()):
                gone[int(torch.nonzero(gone)[0])] = False
            changed |= bool(gone.any())
            kept[each.name] &= ~gone
            for name, places in (*made[each.name], *read[each.name]):
                alive[name][places[gone]] = False
    return {name: torch.nonzero(each).flatten() for name, each in kept.items()}


def without(model: nn.Module, couplings: Sequence[Coupling], kept: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model with the units that stay. Its forward pass fails where it counts on their number."""
    small = copy.deepcopy(model)
    for each in couplings:
        for part in (*each.makes, *each.reads):
            _cut(small, each, part, kept[each.name])
    for module in small.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
            module.out_channels, module.in_channels = module.weight.shape[:2]
    return small


def _cut(model: nn.Module, coupling: Coupling, part: Slice, kept: Tensor) -> None:
    old = model.get_parameter(part.parameter)
    length = old.shape[part.axis]
    index = torch.arange(length).view(part.parts, coupling.units, -1)[:, kept].flatten()
    new = nn.Parameter(old.detach().index_select(part.axis, index), requires_grad=old.requires_grad)
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if parameter is old:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, new)
    if old.ndim == 1:  # a norm's: what it has seen belongs to the same units
        owner = model.get_submodule(part.parameter.rpartition(".")[0])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.shape == old.shape:
                setattr(owner, name, buffer[index])


def _all_places(coupling: Coupling, parts: Sequence[Slice], shapes: Mapping[str, tuple[int, ...]]) -> Slices:
    return [(part.parameter, places_of(coupling, part, shapes)) for part in parts]


def _any(alive: Mapping[str, Tensor], slices: Slices) -> Tensor:
    """Return which units have an active weight in one of the slices."""
    return torch.stack([alive[name][places].any(1) for name, places in slices]).any(0)
