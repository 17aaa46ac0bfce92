"""Units that are out are not there between two layers, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsetrain.compute.layer import put
from sparsetrain.compute.layers import layers_of
from sparsetrain.compute.pairs import pair
from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.models.gpt import GPT
from sparsetrain.models.mlp import MLP

UNITS = 12


class Two(nn.Module):
    """Two layers and what stands between them."""

    def __init__(self, between: nn.Module, image: bool = False):
        super().__init__()
        make = (lambda a, b: nn.Conv2d(a, b, 3, padding=1)) if image else nn.Linear
        self.one, self.between, self.two = make(6, UNITS), between, make(UNITS, 5)
        self.widths: list[int] = []
        axis = 1 if image else -1
        between.register_forward_hook(lambda module, given, out: self.widths.append(given[0].shape[axis]))

    def couplings(self):
        makes = (Slice("one.weight"), Slice("one.bias"))
        return [Coupling(name="c", kind="neuron", units=UNITS, makes=makes, reads=(Slice("two.weight", axis=1),))]

    def loss(self, batch):
        return self.two(self.between(self.one(batch[0]))).square().sum()


class Scaled(nn.Module):
    """Looks at each unit by its number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.arange(1.0, UNITS + 1))

    def forward(self, x):
        return x * self.scale


class Rotated(nn.Module):
    """Looks at the units' places, whatever their number is."""

    def forward(self, x):
        return F.relu(x.roll(1, -1))


def paired(model, *example):
    layers, _ = layers_of(
        model, [name for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1]
    )
    pair(model, layers, model.couplings(), example)
    return layers


@pytest.mark.parametrize(
    ("between", "wanted"),
    [
        (nn.GELU(), True),
        (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)).eval(), True),
        (nn.LayerNorm(UNITS), False),
        (nn.Softmax(-1), False),
        (Scaled(), False),
        (Rotated(), False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_layers_are_a_pair_where_only_single_units_stand_between(between, wanted):
    layers = paired(Two(between), torch.randn(7, 6))
    assert (layers["one.weight"].reader is layers["two.weight"]) == wanted
    assert layers["two.weight"].reader is None


def test_the_models_that_come_along_have_pairs_and_heads_are_none():
    layers = paired(GPT(GPT.Config(layers=2, width=16, heads=2, context=8)), *torch.zeros(2, 2, 8, dtype=torch.int64))
    pairs = {name: layer.reader.name for name, layer in layers.items() if layer.reader is not None}
    assert pairs == {f"blocks.{n}.expand.weight": f"blocks.{n}.contract.weight" for n in range(2)}
    layers = paired(MLP(MLP.Config(hidden=(8, 8))), torch.randn(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64))
    assert [layer.reader is not None for layer in layers.values()] == [True, True, False]


@pytest.mark.parametrize("image", [False, True])
def test_what_is_out_is_not_there_and_all_gradients_are_the_masked_ones(image):
    torch.manual_seed(3)
    model = Two(nn.GELU(), image)
    x = torch.randn(4, 6, 5, 5) if image else torch.randn(2, 7, 6)
    kept = torch.tensor([1, 4, 5, 9])
    masks = {
        name: torch.zeros_like(model.get_parameter(name), dtype=torch.bool) for name in ("one.weight", "two.weight")
    }
    masks["one.weight"][kept] = True
    masks["two.weight"][:, kept] = True
    out = torch.ones(UNITS, dtype=torch.bool).index_fill(0, kept, False)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    model.loss((x,)).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    layers = paired(model, x)
    model.zero_grad()
    model.widths.clear()
    for name, mask in masks.items():
        layers[name].adopt(mask)
        put(model.get_parameter(name), layers[name].values(model.get_parameter(name).data))
        layers[name].choose("smaller")
    for watching in (False, True):
        for layer in layers.values():
            layer.watching = watching
            layer.forget()
        model.zero_grad()
        model.loss((x,)).backward()
        for name, parameter in model.named_parameters():
            gradient = wanted[name][masks[name]] if name in masks else wanted[name]
            if name == "one.bias":
                assert not parameter.grad[out].any() and not gradient[out].any()
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-4), name
    assert model.widths == [len(kept), UNITS]
    for name, layer in layers.items():
        dense = layer.dense_gradient()
        assert dense is not None and torch.allclose(dense, wanted[name], rtol=1e-4, atol=1e-4)
    assert layers["two.weight"].seen == tuple(x.shape[:1]) + ((UNITS, 5, 5) if image else (7, UNITS))
    layers["two.weight"].choose("masked")
    assert not layers["one.weight"]._narrow(layers["one.weight"].way)
