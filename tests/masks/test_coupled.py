"""A model with the masks of couplings is the smaller model, and what is grown can learn."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.maskset import MaskSet

OPTIONS = {
    "mlp": {"inputs": 20, "hidden": (12, 8), "classes": 5},
    "cnn": {"channels": 4, "hidden": 12},
    "gpt": {"layers": 2, "width": 24, "heads": 4, "context": 16},
}
BATCHES = {
    "mlp": lambda: torch.randn(64, 20),
    "cnn": lambda: torch.randn(2, 1, 28, 28),
    "gpt": lambda: torch.randint(0, 256, (3, 16)),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    cls = registry.load("model", name)
    net = cls(cls.Config(**OPTIONS[name]))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # biases and norms too must matter
    return net


def controller(net: nn.Module, structure: str, couplings=None, **options) -> MaskController:
    tree = {"method": "static", "structure": structure, "sparsity": 0.5, "distribution": "uniform", "every": 10}
    return MaskController(
        adapter(Masks).validate_python({**tree, **options}),
        dict(net.named_parameters()),
        maskable=[],
        couplings=net.couplings() if couplings is None else couplings,
        seed=0,
        steps=100,
    )


def kept(masks: MaskController) -> dict[str, Tensor]:
    """Return the units that are left of each coupling."""
    chosen = masks.chooser.view.masks(masks.masks.masks)
    return {name: torch.nonzero(mask[:, 0]).flatten() for name, mask in chosen.items()}


def linear(layer: nn.Linear, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    """Return the layer with the named rows and columns alone, in fewer weights."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    weight, bias = (weight, bias) if rows is None else (weight[rows], bias[rows])
    weight = weight if columns is None else weight[:, columns]
    smaller = nn.Linear(weight.shape[1], weight.shape[0])
    smaller.weight, smaller.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return smaller


def smaller_mlp(net: nn.Module, units: dict[str, Tensor]) -> nn.Module:
    net = copy.deepcopy(net)
    for n in range(3):
        net.layers[n] = linear(net.layers[n], units.get(f"layers.{n}"), units.get(f"layers.{n - 1}"))
    return net


def smaller_cnn(net: nn.Module, units: dict[str, Tensor]) -> nn.Module:
    net, first, second = copy.deepcopy(net), units["first"], units["second"]
    for layer, rows, columns in ((net.first, first, slice(None)), (net.second, second, first)):
        layer.weight = nn.Parameter(layer.weight.detach()[rows][:, columns].clone())
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
    pixels = torch.cat([torch.arange(49) + 49 * int(channel) for channel in second])
    net.hidden = linear(net.hidden, units["hidden"], pixels)
    net.output = linear(net.output, None, units["hidden"])
    return net


class FewHeads(nn.Module):
    """A block of the GPT that has only the named heads, written down head by head."""

    def __init__(self, block: nn.Module, heads: Tensor, width: int, every: int) -> None:
        super().__init__()
        self.block, size = block, width // every
        rows = [[torch.arange(size) + part * width + size * int(head) for part in range(3)] for head in heads]
        self.qkv = nn.ModuleList(nn.ModuleList(linear(block.qkv, part, None) for part in head) for head in rows)
        columns = torch.cat([torch.arange(size) + size * int(head) for head in heads])
        self.project = linear(block.project, None, columns)
        del block.qkv, block.project

    def forward(self, x: Tensor) -> Tensor:
        inner, length = self.block.norm_attention(x), x.shape[1]
        hidden = torch.ones(length, length).triu(1).bool()
        mixed = []
        for q, k, v in self.qkv:
            scores = q(inner) @ k(inner).transpose(1, 2) / q.out_features**0.5
            mixed.append(scores.masked_fill(hidden, -torch.inf).softmax(2) @ v(inner))
        x = x + self.project(torch.cat(mixed, 2))
        return x + self.block.contract(F.gelu(self.block.expand(self.block.norm_mlp(x))))


def smaller_gpt(net: nn.Module, units: dict[str, Tensor]) -> nn.Module:
    net = copy.deepcopy(net)
    for n, block in enumerate(net.blocks):
        if f"blocks.{n}.mlp" in units:
            neurons = units[f"blocks.{n}.mlp"]
            block.expand, block.contract = linear(block.expand, neurons, None), linear(block.contract, None, neurons)
        else:
            net.blocks[n] = FewHeads(block, units[f"blocks.{n}.attention"], 24, 4)
    return net


SMALLER = {"mlp": smaller_mlp, "cnn": smaller_cnn, "gpt": smaller_gpt}


@pytest.mark.parametrize(
    ("name", "structure", "units"),
    [
        ("mlp", "neuron", {"layers.0": 6, "layers.1": 4}),
        ("cnn", "neuron", {"first": 2, "second": 4, "hidden": 6}),
        ("gpt", "neuron", {"blocks.0.mlp": 48, "blocks.1.mlp": 48}),
        ("gpt", "head", {"blocks.0.attention": 2, "blocks.1.attention": 2}),
    ],
)
def test_a_masked_model_computes_what_the_smaller_model_computes(name, structure, units):
    net, batch = make(name), BATCHES[name]()
    dense = net(batch)
    masks = controller(net, structure)
    left = kept(masks)
    assert {each: len(found) for each, found in left.items()} == units
    smaller = SMALLER[name](net, left)
    assert torch.allclose(net(batch), smaller(batch), atol=1e-5)
    assert not torch.allclose(net(batch), dense, atol=1e-2)
    # What is left of the masked parameters is what the smaller model has of them, not one weight more.
    whole, few = (sum(p.numel() for p in each.parameters()) for each in (net, smaller))
    active = masks.masks.counts()
    assert whole - few == sum(masks.parameters[each].numel() - count for each, count in active.items())


def test_a_coupling_keeps_a_unit_where_the_budget_is_less_than_one():
    masks = controller(make("gpt"), "head", sparsity=0.9)
    assert [len(found) for found in kept(masks).values()] == [1, 1]
    assert masks.chooser.view.units(masks.masks.masks) == (2, 8)


def test_neurons_go_by_all_that_belongs_to_them():
    """The neuron with the smallest rows stays where its columns are large."""
    net = make("mlp")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.1)
        net.layers[0].weight[3] = 0.0
        net.layers[1].weight[:, 3] = 9.0
        net.layers[0].weight[7], net.layers[1].weight[:, 7] = 0.2, 0.0
    couplings = net.couplings()[:1]
    masks = controller(net, "neuron", couplings, method="magnitude", rescale_init=False, sparsity=1 / 12)
    masks.step(10, None)
    assert [n for n in range(12) if n not in kept(masks)["layers.0"]] == [11]
    masks = controller(net, "neuron", couplings, method="magnitude", rescale_init=False, sparsity=11 / 12)
    masks.step(10, None)
    assert kept(masks)["layers.0"].tolist() == [3]


def test_names_of_couplings_are_what_exclude_and_rules_speak_of():
    masks = controller(make("gpt"), "head", exclude=["first"])
    assert list(masks.parameters) == [f"blocks.1.{each}" for each in ("qkv.weight", "qkv.bias", "project.weight")]
    masks = controller(make("mlp"), "neuron", rules={"layers.1": 0.25})
    assert {name: len(found) for name, found in kept(masks).items()} == {"layers.0": 6, "layers.1": 6}


def test_only_what_reads_removed_units_is_rescaled():
    dense, net = make("mlp"), make("mlp")
    masks = controller(net, "neuron").masks.masks
    for name, factor in {"0.weight": 1.0, "0.bias": 1.0, "1.weight": 2.0**0.5, "2.weight": 2.0**0.5}.items():
        mask = masks[f"layers.{name}"]
        before, after = (each.get_parameter(f"layers.{name}")[mask] for each in (dense, net))
        assert torch.allclose(after, before * factor, rtol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_what_is_grown_changes_nothing_at_first_and_learns_in_the_next_step(name):
    net, batch = make(name), BATCHES[name]()
    structure = "head" if name == "gpt" else "neuron"
    masks = controller(net, structure, method={"name": "set", "drop_fraction": 1.0})
    with torch.no_grad():  # what will be dropped computes nothing, so that only growth could change the output
        proposed = masks.chooser.propose(masks.masks, masks._weights(), {}, 0.5, 0.1)
        for each, mask in proposed.masks.items():
            masks.parameters[each].copy_(torch.where(mask, masks.parameters[each], 0.0))
    before = net(batch)
    view, old = masks.chooser.view, masks.masks
    masks.step(10, None)
    assert torch.equal(net(batch), before)
    net(batch).square().sum().backward()
    was, now = (view.masks(each.masks) for each in (old, masks.masks))
    gradients = view.gather({each: parameter.grad for each, parameter in masks.parameters.items()})
    grown = {each: now[each][:, 0] & ~was[each][:, 0] for each in now}
    assert sum(int(units.sum()) for units in grown.values()) >= 1
    for each, units in grown.items():
        assert torch.all((gradients[each][units] != 0).any(1))


def test_a_unit_that_was_only_zeros_would_never_have_a_gradient():
    net, batch = make("mlp"), BATCHES["mlp"]()
    masks = controller(net, "neuron")
    net(batch).square().sum().backward()
    gradients = masks.chooser.view.gather({each: p.grad for each, p in masks.parameters.items()})
    for name, mask in masks.chooser.view.masks(masks.masks.masks).items():
        assert torch.all(gradients[name][~mask[:, 0]] == 0)


def test_fresh_values_are_like_the_active_ones_and_keyed_by_seed_name_and_epoch():
    net = make("gpt")
    masks = controller(net, "neuron", method="acdc", sparsity=0.5)
    chosen = {name: mask.clone() for name, mask in masks.masks.masks.items()}
    chosen = masks.chooser.view.masks(chosen)
    half = {name: mask & (torch.arange(len(mask)) % 2 == 0).unsqueeze(1) for name, mask in chosen.items()}
    old, new = (MaskSet(masks.chooser.view.scatter(each), epoch) for each, epoch in ((half, 1), (chosen, 2)))
    found = masks.chooser.view.fresh(old, new, masks.parameters, 0)
    assert sorted(found) == [f"blocks.{n}.expand.{each}" for n in range(2) for each in ("bias", "weight")]
    places, values = found["blocks.0.expand.weight"]
    active = net.blocks[0].expand.weight.detach()[old.masks["blocks.0.expand.weight"]]
    assert torch.equal(places, ~old.masks["blocks.0.expand.weight"])
    assert float(values.mean()) == pytest.approx(float(active.mean()), abs=0.1 * float(active.std()))
    assert float(values.std()) == pytest.approx(float(active.std()), rel=0.1)
    again = masks.chooser.view.fresh(old, new, masks.parameters, 0)["blocks.0.expand.weight"][1]
    other = masks.chooser.view.fresh(old, MaskSet(new.masks, 3), masks.parameters, 0)["blocks.0.expand.weight"][1]
    assert torch.equal(again, values) and not torch.equal(other, values)


def coupling(*makes: Slice, name: str = "c", units: int = 12) -> Coupling:
    return Coupling(name=name, kind="neuron", units=units, makes=makes)


@pytest.mark.parametrize(
    ("couplings", "says"),
    [
        ([], r"neuron needs a model whose couplings\(\) name neurons, and this one names none at all; allowed: "),
        ([coupling(Slice("layers.9.weight"))], r"layers\.9\.weight is no trained parameter"),
        ([coupling(Slice("layers.0.bias", axis=1))], r"layers\.0\.bias has no axis 1"),
        ([coupling(Slice("layers.0.weight", parts=5))], r"has 12 along axis 0, not 5 x 12 equal runs"),
        ([coupling(Slice("layers.0.bias")), coupling(Slice("layers.0.bias"), name="d")], r"in the coupling c already"),
        ([coupling(Slice("layers.0.bias")), coupling(Slice("layers.0.weight"))], r"two couplings .* the same name"),
        ([coupling()], r"the coupling c makes nothing"),
    ],
)
def test_couplings_that_do_not_fit_the_model_are_refused_in_one_line(couplings, says):
    with pytest.raises(JobError, match=rf"^masks\.structure: .*{says}.*"):
        controller(make("mlp"), "neuron", couplings)


@pytest.mark.parametrize("method", ["rigl", "topkast", "sr_ste"])
def test_methods_that_live_on_gradients_of_what_is_removed_are_refused(method):
    with pytest.raises(JobError, match=rf"^masks\.method: {method} lives on gradients .* allowed: acdc, .*set, "):
        controller(make("mlp"), "neuron", method=method)


def test_group_lasso_takes_a_neuron_with_all_that_belongs_to_it():
    net = make("mlp")
    masks = controller(net, "neuron", regulariser={"name": "group_lasso", "strength": 0.3})
    weights = dict(net.named_parameters())
    for parameter in weights.values():
        parameter.grad = torch.zeros_like(parameter)
    masks.pull(1)
    units = []
    for first, second, width in (("layers.0", "layers.1", 12), ("layers.1", "layers.2", 8)):
        for unit in range(width):
            parts = (weights[f"{first}.weight"][unit], weights[f"{first}.bias"][unit : unit + 1])
            units.append(torch.cat([*parts, weights[f"{second}.weight"][:, unit]]))
    penalty = 0.3 * sum(unit.numel() ** 0.5 * unit.norm() for unit in units if bool(unit.any()))
    for name, expected in zip(weights, torch.autograd.grad(penalty, weights.values(), allow_unused=True), strict=True):
        if name == "layers.2.bias":
            assert not weights[name].grad.any()
        else:
            wanted = torch.where(masks.masks.update(name), expected, 0.0)
            assert torch.allclose(weights[name].grad, wanted, atol=1e-6), name
