"""How many floating-point operations a run takes, counted on its model, and what its masks leave of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sparsetrain.masks.maskset import MaskSet


@dataclasses.dataclass(frozen=True)
class Operations:
    """Operations of one dense forward pass: of the whole model, and of the layers whose weights are masked, by the
    weight's name. A multiplication and an addition are two."""

    total: float
    masked: Mapping[str, float]

    def forward(self, masks: MaskSet) -> float:
        """Return a forward pass with these masks as a share of the dense one."""
        return self._share({name: forward for name, (forward, _) in masks.densities.items()})

    def training(self, masks: MaskSet, dense_gradient: bool) -> float:
        """Return a training step as a share of the dense one, three passes: the products for outputs and for inputs'
        gradients take the forward set, that for weights' gradients the update set, or all weights where the step asks
        for a dense gradient (Evci et al. 2020, appendix H, counted instead of estimated)."""
        updates = {name: 1.0 if dense_gradient else update for name, (_, update) in masks.densities.items()}
        return (2.0 * self.forward(masks) + self._share(updates)) / 3.0

    def _share(self, densities: Mapping[str, float]) -> float:
        spared = sum(count * (1.0 - densities.get(name, 1.0)) for name, count in self.masked.items())
        return 1.0 - spared / self.total if self.total else 1.0


@torch.no_grad()
def count(model: Any, batch: tuple[Tensor, ...], weights: Mapping[str, Tensor]) -> Operations:
    """Return the operations of the model's loss on `batch`; the model stays as it is.

    `weights` are the masked parameters by name; an operation is a weight's where that weight is one of its operands.
    """
    # The other ways to attend hide their products.
    with unchanged(model), _Counter(weights) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(batch)
    return Operations(counter.total, counter.masked)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Generator[None]:
    """Inside, a forward pass draws nothing and learns nothing; afterwards the model's modules train as before."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


class _Counter(TorchDispatchMode):
    """Adds up what torch's own formulas say of each product, and remembers whose weight was in it."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.total = 0.0
        self.masked = {name: 0.0 for name, weight in weights.items() if weight.ndim > 1}
        self.owner = {weights[name].untyped_storage().data_ptr(): name for name in self.masked}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            found = float(formula(*args, **(kwargs or {}), out_val=out))
            self.total += found
            for operand in args:
                name = self.owner.get(operand.untyped_storage().data_ptr()) if isinstance(operand, Tensor) else None
                if name is not None:
                    self.masked[name] += found
        return out
