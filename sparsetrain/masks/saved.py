"""State of masks that comes from a file: looked at before it is trusted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.masks.maskset import MaskSet


def fitting(name: str, saved: Tensor | None, like: Tensor) -> Tensor:
    """Return `saved` on the device of `like`. Raises ValueError where it is missing, of another shape or type, or not
    finite."""
    if saved is None:
        raise ValueError(f"no {name}")
    if saved.shape != like.shape or saved.dtype != like.dtype:
        raise ValueError(f"{name} is {saved.dtype} {tuple(saved.shape)}, not {like.dtype} {tuple(like.shape)}")
    if not bool(torch.isfinite(saved).all()):
        raise ValueError(f"{name} is not finite")
    return saved.to(like.device, copy=True)


def check_inactive(masks: MaskSet, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a weight outside the update sets is not zero: weights and masks are not of one step."""
    for name, update in masks.limits.items():
        astray = torch.nonzero((weights[name].detach() != 0).flatten() & ~update.flatten())
        if astray.numel():
            raise ValueError(f"{name} is not zero at index {int(astray[0])}, which its mask leaves out")
