"""What an optimizer keeps of each parameter, asked of the optimizer itself."""

from __future__ import annotations

import inspect

import torch


def fields_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of the state that an optimizer of this class and settings has after a step; none where another
    one cannot be made of them."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    try:
        known = inspect.signature(type(optimizer)).parameters
        twin = type(optimizer)([weight], **{key: value for key, value in optimizer.defaults.items() if key in known})
        twin.step()
    except Exception:  # whatever a user's optimizer wants besides
        return set()
    return {field for field, value in twin.state.get(weight, {}).items() if value is not None}
