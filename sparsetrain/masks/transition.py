"""What a mask update does to weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsetrain.masks.maskset import MaskSet

# Second moments: zero would make the first step of a grown weight about three times the learning rate.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


@torch.no_grad()
def apply(
    old: MaskSet, new: MaskSet, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> None:
    """Bring weights and optimizer state to the new masks.

    Coordinates active before and after keep everything; dropped and grown ones get weight 0 and first moments 0;
    grown ones get the mean second moment of those that stayed active.
    """
    for name, mask in new.masks.items():
        stayed = old.masks[name] & mask
        parameter = parameters[name]
        parameter.copy_(torch.where(stayed, parameter, 0.0))
        if optimizer is None or parameter not in optimizer.state:
            continue
        for field, value in optimizer.state[parameter].items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                value.copy_(torch.where(stayed, value, _fresh(field, value, stayed, mask)))


def _fresh(field: str, value: Tensor, stayed: Tensor, mask: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    if field not in SECOND_MOMENTS or not stayed.any():
        return zero
    return torch.where(mask, value[stayed].mean(), zero)
