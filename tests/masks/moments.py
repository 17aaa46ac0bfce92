"""What a method sees, made up for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.methods.base import MaskMethod, Moment
from sparsetrain.masks.present import Present


def method(name: str, **options: Any) -> MaskMethod:
    cls = registry.load("mask_method", name)
    return cls(adapter(cls.Config).validate_python(options))


def flat(shape: tuple[int, ...]) -> Layout:
    """Single weights."""
    return Layout(shape, 1, torch.Size(shape).numel(), 1)


def moment(weight: Tensor, mask: Tensor, count: int, **given: Any) -> Moment:
    """Return a moment in the middle of a schedule; what is not given is plain."""
    plain = {
        "name": "w",
        "layout": flat(tuple(weight.shape)),
        "update_count": count,
        "budget": count,
        "progress": 0.0,
        "generator": generator_for(0, "w", 1),
    }
    name, signal = given.get("name", "w"), given.pop("signal", None)
    held = {"weights": {name: weight}, "signals": {} if signal is None else {name: signal}}
    return Moment(**{**held, "mask": mask, "count": count, **plain, **given})


def present(weight: Tensor, mask: Tensor, update: Tensor, **given: Any) -> Present:
    """Return what a tensor holds at a step."""
    plain = {"name": "w", "layout": flat(tuple(weight.shape)), "seed": 0, "step": 1}
    return Present(**{"weight": weight, "mask": mask, "update": update, **plain, **given})
