import torch
from torch import nn

from sparsetrain.compute.layers import layers_of


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.own = nn.Parameter(torch.zeros(4, 4))
        self.half = nn.Linear(4, 4).bfloat16()
        self.embed = nn.Embedding(4, 4)


def test_only_layers_that_are_known_hold_values_and_all_others_say_why():
    model = Odd()
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    found, others = layers_of(model, names)
    assert list(found) == ["plain.weight"]
    assert others == {
        "own": "it is not a layer's weight",
        "tied.weight": "it is shared",
        "grouped.weight": "Conv2d is not a layer that is known",
        "mirrored.weight": "Conv2d is not a layer that is known",
        "same.weight": "Conv2d is not a layer that is known",
        "half.weight": "it is torch.bfloat16",
        "embed.weight": "Embedding is not a layer that is known",
    }
    assert "forward" in vars(model.plain) and "forward" not in vars(model.tied)
