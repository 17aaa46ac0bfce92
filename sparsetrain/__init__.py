"""Sparse gradients and shared weight masks for data-parallel training over networks slower than their accelerators.

Three doors: `sparsetrain run job.yaml`; `GradientExchange.aggregate` and `MaskController.step` in any loop;
`comm_hook` for DistributedDataParallel.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsetrain.collective.torch_dist import torch_world as torch_world
    from sparsetrain.collective.world import World as World
    from sparsetrain.config.coupling import Coupling as Coupling
    from sparsetrain.config.coupling import Slice as Slice
    from sparsetrain.config.job import Exchange as Exchange
    from sparsetrain.config.job import Job as Job
    from sparsetrain.config.job import Masks as Masks
    from sparsetrain.config.load import load_job as load_job
    from sparsetrain.gradient.exchange import GradientExchange as GradientExchange
    from sparsetrain.gradient.hook import HookState as HookState
    from sparsetrain.gradient.hook import comm_hook as comm_hook
    from sparsetrain.masks.controller import MaskController as MaskController

__version__ = "0.1.0"

_HOME = {
    "Coupling": "config.coupling",
    "Exchange": "config.job",
    "GradientExchange": "gradient.exchange",
    "HookState": "gradient.hook",
    "Job": "config.job",
    "MaskController": "masks.controller",
    "Masks": "config.job",
    "Slice": "config.coupling",
    "World": "collective.world",
    "comm_hook": "gradient.hook",
    "load_job": "config.load",
    "torch_world": "collective.torch_dist",
}
__all__ = [
    "Coupling",
    "Exchange",
    "GradientExchange",
    "HookState",
    "Job",
    "MaskController",
    "Masks",
    "Slice",
    "World",
    "comm_hook",
    "load_job",
    "torch_world",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `sparsetrain --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsetrain' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sparsetrain.{_HOME[name]}"), name)
