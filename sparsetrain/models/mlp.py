"""LeNet-300-100, the small network of the pruning papers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from torch import Tensor, nn

from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.numbers import Positive
from sparsetrain.models.classifier import Classifier


class MLP(Classifier):
    """Fully connected network with ReLU; LeNet-300-100 by default (266,200 weights)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`inputs` is the number of pixels."""

        inputs: Positive = 784
        hidden: tuple[Positive, ...] = (300, 100)
        classes: Positive = 10

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.widths = (config.inputs, *config.hidden, config.classes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(self.widths))

    def maskable(self) -> list[str]:
        """Return the names of all weight matrices."""
        return [name for name, parameter in self.named_parameters() if parameter.ndim == 2]

    def couplings(self) -> list[Coupling]:
        """Return the hidden neurons of each layer: rows, bias, and the next layer's columns."""
        return [
            Coupling(
                name=f"layers.{n}",
                kind="neuron",
                units=units,
                makes=(Slice(f"layers.{n}.weight"), Slice(f"layers.{n}.bias")),
                reads=(Slice(f"layers.{n + 1}.weight", axis=1),),
            )
            for n, units in enumerate(self.widths[1:-1])
        ]

    def resized(self, units: Mapping[str, int]) -> Config:
        """Return the Config of this network with so many units in each of its couplings."""
        return dataclasses.replace(self.config, hidden=tuple(units[f"layers.{n}"] for n in range(len(self.widths) - 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
