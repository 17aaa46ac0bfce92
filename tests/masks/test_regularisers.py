import pytest
import torch
from moments import flat, present
from torch import nn

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.structures.block import Block
from sparsetrain.masks.structures.row import Row

SHAPE = (6, 8)
LAYOUTS = {
    "flat": flat(SHAPE),
    "row": Row(Row.Config()).layout("w", SHAPE),
    "column": Row(Row.Config(axis=1)).layout("w", SHAPE),
    "block": Block(Block.Config(rows=3, columns=2)).layout("w", SHAPE),
}
UNITS = {
    "row": lambda weight: weight.unbind(0),
    "column": lambda weight: weight.unbind(1),
    "block": lambda weight: [part for row in weight.split(3, 0) for part in row.split(2, 1)],
}


def regulariser(name: str, strength: float):
    cls = registry.load("regulariser", name)
    return cls(adapter(cls.Config).validate_python({"strength": strength}))


def penalty(name: str, weight: torch.Tensor, layout: str) -> torch.Tensor:
    """The formulas as the papers give them."""
    if name == "l1":
        return weight.abs().sum()
    if name == "hoyer":
        return weight.abs().sum() ** 2 / weight.square().sum()
    units = UNITS[layout](weight)
    return sum(unit.numel() ** 0.5 * unit.norm() for unit in units)


CASES = [("l1", "flat"), ("hoyer", "flat"), *(("group_lasso", layout) for layout in UNITS)]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_what_is_added_is_the_gradient_of_the_penalty(name, layout):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(0.3 * penalty(name, weight, layout), weight)
    everything = torch.ones(SHAPE, dtype=torch.bool)
    given = present(weight.detach().float(), everything, everything, layout=LAYOUTS[layout])
    assert torch.allclose(regulariser(name, 0.3).pull(given).double(), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_at_zero_it_is_zero_and_a_number(name, layout):
    weight, everything = torch.zeros(SHAPE), torch.ones(SHAPE, dtype=torch.bool)
    pull = regulariser(name, 0.3).pull
    assert torch.equal(pull(present(weight, everything, everything, layout=LAYOUTS[layout])), weight)
    weight[1, 1] = 2.0
    found = pull(present(weight, everything, everything, layout=LAYOUTS[layout]))
    assert torch.isfinite(found).all() and torch.all(found[weight == 0] == 0)


def controller(parameters: dict[str, nn.Parameter], **options) -> MaskController:
    tree = {"sparsity": 0.5, "distribution": "uniform", **options}
    names = [name for name, parameter in parameters.items() if parameter.ndim == 2]
    return MaskController(adapter(Masks).validate_python(tree), parameters, maskable=names, seed=0, steps=100)


def test_it_joins_what_the_method_adds_inside_the_update_set_of_masked_tensors_only():
    torch.manual_seed(0)
    parameters = {"w": nn.Parameter(torch.randn(SHAPE)), "bias": nn.Parameter(torch.randn(8))}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    options = {"method": {"name": "topkast", "extra": 0.25, "penalty": 0.5}}
    masks = controller(parameters, **options, regulariser={"name": "l1", "strength": 0.25})
    forward, update = masks.masks.masks["w"], masks.masks.update("w")
    sign = parameters["w"].detach().sign()
    masks.pull(1)
    expected = torch.where(forward, 1 + 0.75 * sign, torch.where(update, 1 + 1.25 * sign, 1.0))
    assert int(update.sum()) > int(forward.sum()) and torch.equal(parameters["w"].grad, expected)
    assert torch.equal(parameters["bias"].grad, torch.ones(8))


@pytest.mark.parametrize("name", ["l1", "hoyer", "group_lasso"])
def test_weights_that_do_not_matter_become_small(name):
    """Half of the rows are held by a loss, the others by nothing: there many weights shrink, under a penalty only."""
    torch.manual_seed(0)
    start = torch.randn(8, 16)

    def small(regulariser: dict | None) -> int:
        weight = nn.Parameter(start.clone())
        options = {"method": "gmp", "structure": "row", "regulariser": regulariser, "begin": 1.0, "end": 200}
        masks = controller({"w": weight}, **options)
        optimizer = torch.optim.SGD([weight], lr=0.05)
        for step in range(1, 100):
            weight.grad = torch.cat([weight.detach()[:4] - start[:4], torch.zeros(4, 16)])
            masks.pull(step)
            optimizer.step()
        return int((weight.detach()[4:].abs() < 0.1).sum())

    assert small(None) < 10
    assert small({"name": name, "strength": 0.2 if name == "hoyer" else 0.3}) > 30


def test_group_lasso_of_single_weights_is_refused():
    says = r"masks\.regulariser: group_lasso with unstructured, .*; allowed: masks\.structure block, row"
    with pytest.raises(JobError, match=says):
        controller({"w": nn.Parameter(torch.ones(4, 4))}, regulariser="group_lasso")
