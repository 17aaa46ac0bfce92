"""Units that are out are not there between two layers, and nothing else changes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsetrain.compute.layer import put
from sparsetrain.compute.layers import layers_of
from sparsetrain.compute.pairs import pair
from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.masks.coupled import places_of
from sparsetrain.models.cnn import CNN
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
    return layers, pair(model, layers, model.couplings(), example)


def names_of(pairs):
    return {each.reader.name: [giver.name for giver, _ in each.givers] for each in pairs}


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
    layers, pairs = paired(Two(between), torch.randn(7, 6))
    assert names_of(pairs) == ({"two.weight": ["one.weight"]} if wanted else {})
    assert not any(layer.narrow() for layer in layers.values())  # nothing is out yet


def images_of(count):
    return torch.randn(count, 1, 28, 28), torch.zeros(count, dtype=torch.int64)


def test_neurons_filters_and_heads_of_the_models_that_come_along_are_pairs():
    small = GPT.Config(layers=2, width=16, heads=4, context=8)
    _, pairs = paired(GPT(small), *torch.zeros(2, 2, 8, dtype=torch.int64))
    assert names_of(pairs) == {
        f"blocks.{n}.{reader}.weight": [f"blocks.{n}.{giver}.weight"]
        for n in range(2)
        for giver, reader in (("qkv", "project"), ("expand", "contract"))
    }
    _, pairs = paired(MLP(MLP.Config(hidden=(8, 8))), *images_of(3))
    assert names_of(pairs) == {"layers.1.weight": ["layers.0.weight"], "layers.2.weight": ["layers.1.weight"]}
    _, pairs = paired(CNN(CNN.Config(channels=4, hidden=8)), *images_of(3))
    assert names_of(pairs) == {
        "second.weight": ["first.weight"], "hidden.weight": ["second.weight"], "output.weight": ["hidden.weight"]
    }  # fmt: skip
    model = GPT(dataclasses.replace(small, dropout=0.5)).eval()
    _, pairs = paired(model, *torch.zeros(2, 2, 8, dtype=torch.int64))
    assert len(pairs) == 4


def narrowed(model, coupling, kept, example):
    """The model with `kept` units in smaller matrices, and the gradients that it had before."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    masks = {}
    with torch.no_grad():
        for part in (*coupling.makes, *coupling.reads):
            mask = torch.zeros(shapes[part.parameter], dtype=torch.bool)
            mask.view(-1)[places_of(coupling, part, shapes)[kept].flatten()] = True
            model.get_parameter(part.parameter).mul_(mask)
            if part.parameter.endswith("weight"):
                masks[part.parameter] = mask
    model.loss(example).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    layers, _ = paired(model, *example)
    for name, mask in masks.items():
        layers[name].adopt(mask)
        put(model.get_parameter(name), layers[name].values(model.get_parameter(name).data))
        layers[name].choose("smaller")
    return layers, {name: each[masks[name]] if name in masks else each for name, each in wanted.items()}


class Gated(nn.Module):
    """Two layers make a unit together."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, UNITS), nn.Linear(6, UNITS), nn.Linear(UNITS, 5)

    def couplings(self):
        makes = tuple(Slice(f"{name}.{kind}") for name in ("gate", "up") for kind in ("weight", "bias"))
        return [Coupling(name="c", kind="neuron", units=UNITS, makes=makes, reads=(Slice("down.weight", axis=1),))]

    def loss(self, batch):
        return self.down(F.silu(self.gate(batch[0])) * self.up(batch[0])).square().sum()


@pytest.mark.parametrize("kind", ["heads", "gated", "filters"])
def test_units_of_several_rows_layers_or_columns_are_not_there(kind, monkeypatch):
    torch.manual_seed(5)
    widths = []
    if kind == "heads":
        model = GPT(GPT.Config(layers=1, width=16, heads=4, context=8))
        example = tuple(torch.randint(0, 256, (2, 3, 8)))
        plain = F.scaled_dot_product_attention
        monkeypatch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, **how: widths.append(q.shape[1]) or plain(q, k, v, **how)
        )
        coupling, kept = model.couplings()[0], torch.tensor([0, 2, 3])
    elif kind == "gated":
        model, example = Gated(), (torch.randn(7, 6),)
        model.down.register_forward_hook(lambda module, given, out: widths.append(given[0].shape[-1]))
        coupling, kept = model.couplings()[0], torch.tensor([1, 4, 5])
    else:
        model, example = CNN(CNN.Config(channels=4, hidden=8)), images_of(3)
        model.hidden.register_forward_hook(lambda module, given, out: widths.append(given[0].shape[-1] // 49))
        coupling, kept = model.couplings()[1], torch.tensor([1, 4, 6])
    layers, wanted = narrowed(model, coupling, kept, example)
    for watching in (False, True):
        next(iter(layers.values())).watching = watching
        model.zero_grad()
        widths.clear()
        model.loss(example).backward()
        assert watching or widths == [len(kept)]
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5), name


def test_a_unit_that_is_there_in_part_or_that_only_one_side_has_stays():
    torch.manual_seed(6)
    model, example = Gated(), (torch.randn(7, 6),)
    layers, _ = narrowed(model, model.couplings()[0], torch.tensor([1, 4, 5]), example)
    assert layers["gate.weight"].narrow() and layers["up.weight"].narrow()
    whole = layers["up.weight"].whole(model.up.weight.data)
    layers["up.weight"].choose("masked")
    put(model.up.weight, whole)
    assert not layers["gate.weight"].narrow()
    model = GPT(GPT.Config(layers=1, width=16, heads=4, context=8))
    layers, _ = narrowed(model, model.couplings()[0], torch.tensor([0, 2]), tuple(torch.randint(0, 256, (2, 3, 8))))
    assert layers["blocks.0.qkv.weight"].narrow()
    mask = layers["blocks.0.qkv.weight"].mask.clone()
    mask[0] = False  # one row of a head
    layers["blocks.0.qkv.weight"].adopt(mask)
    assert layers["blocks.0.qkv.weight"].chosen == "smaller" and not layers["blocks.0.qkv.weight"].narrow()


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
    layers, _ = paired(model, x)
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
    assert not layers["one.weight"].narrow()
