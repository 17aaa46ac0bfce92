"""What a mask update does to weights and optimizer state; everything here is about update sets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsetrain.masks.maskset import MaskSet

# Second moments: zero would make the first step of a grown weight about three times the learning rate.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


@torch.no_grad()
def apply(
    old: MaskSet,
    new: MaskSet,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
    dormant: dict[str, Tensor],
) -> None:
    """Bring weights and optimizer state to the new masks.

    Coordinates in the update set before and after keep everything; dropped and grown ones get weight 0 and first
    moments 0; grown ones get the mean second moment of those that stayed. Weights of the tensors in `dormant` wait
    there instead, and come back from there. What is held as the values of its update set alone is left as it is.
    """
    for name, before, after in old.changes(new):
        parameter, stayed = parameters[name], before & after
        if parameter.shape != after.shape:  # who holds only the active ones brings them to the new masks
            continue
        if name in dormant:
            asleep = torch.where(before, parameter, dormant[name])
            parameter.copy_(torch.where(after, asleep, 0.0))
            dormant[name] = torch.where(after, 0.0, asleep)
        else:
            parameter.copy_(torch.where(stayed, parameter, 0.0))
        if optimizer is None or parameter not in optimizer.state:
            continue
        for field, value in optimizer.state[parameter].items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                value.copy_(moved(field, value, stayed, after))


def moved(field: str, value: Tensor, stayed: Tensor, after: Tensor) -> Tensor:
    """Return a field of a parameter's optimizer state for the update set `after`, of which `stayed` were in before."""
    return torch.where(stayed, value, _fresh(field, value, stayed, after))


def restart(optimizer: torch.optim.Optimizer | None) -> None:
    """Let the optimizer forget everything, as if no step had been taken."""
    if optimizer is not None:
        optimizer.state.clear()


@torch.no_grad()
def begin(parameters: Mapping[str, nn.Parameter], fresh: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Give grown weights that do not begin at 0 their values; `fresh` holds (places, values) by name."""
    for name, (places, values) in fresh.items():
        parameters[name].copy_(torch.where(places, values, parameters[name]))


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer | None) -> None:
    """Set the first moments of all parameters to zero."""
    for parameter, state in optimizer.state.items() if optimizer is not None else ():
        for field, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and field not in SECOND_MOMENTS:
                value.zero_()


def _fresh(field: str, value: Tensor, stayed: Tensor, mask: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    if field not in SECOND_MOMENTS or not stayed.any():
        return zero
    return torch.where(mask, value[stayed].mean(), zero)
