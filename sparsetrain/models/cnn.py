"""A small convolutional network for 28 x 28 images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.numbers import Positive
from sparsetrain.models.classifier import Classifier


class CNN(Classifier):
    """Two 3x3 convolutions with pooling and two linear layers (about 215,000 weights by default)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`channels` of the first convolution; the second has twice as many."""

        channels: Positive = 16
        hidden: Positive = 128
        classes: Positive = 10

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.first = nn.Conv2d(1, c, 3, padding=1)
        self.second = nn.Conv2d(c, 2 * c, 3, padding=1)
        self.hidden = nn.Linear(2 * c * 7 * 7, config.hidden)
        self.output = nn.Linear(config.hidden, config.classes)

    def maskable(self) -> list[str]:
        """Return all weight tensors but the first convolution's, which has few weights and feeds everything."""
        return ["second.weight", "hidden.weight", "output.weight"]

    def couplings(self) -> list[Coupling]:
        """Return the filters of both convolutions and the hidden neurons, each with bias and the columns behind it.

        A filter of the second convolution is 49 columns of the hidden layer, the pixels of its channel.
        """
        chain = ("first", "second", "hidden", "output")
        return [
            Coupling(
                name=name,
                kind="neuron",
                units=len(self.get_parameter(f"{name}.bias")),
                makes=(Slice(f"{name}.weight"), Slice(f"{name}.bias")),
                reads=(Slice(f"{behind}.weight", axis=1),),
            )
            for name, behind in itertools.pairwise(chain)
        ]

    def resized(self, units: Mapping[str, int]) -> Config | None:
        """Return the Config of this network with so many units in each of its couplings; None where none says it."""
        if units["second"] != 2 * units["first"]:
            return None
        return dataclasses.replace(self.config, channels=units["first"], hidden=units["hidden"])

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x).relu(), 2)
        x = F.max_pool2d(self.second(x).relu(), 2)
        return self.output(self.hidden(x.flatten(1)).relu())
