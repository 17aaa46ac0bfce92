"""Methods whose own parameters learn what each tensor keeps: str and l0."""

import math

import pytest
import torch
from moments import method
from torch import nn

from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.config.load import parse
from sparsetrain.masks.controller import MaskController

SHAPES = {"a": (30, 20), "b": (10, 30)}


def controller(rule: object, dtype: torch.dtype = torch.float32, **options) -> MaskController:
    """Return a controller of two tensors, with updates at 10, 20 and 30 of 40 steps."""
    draw = torch.Generator().manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for name, shape in SHAPES.items()}
    tree = {"method": rule, "distribution": "global", "sparsity": 0.8, "every": 10, "end": 35, **options}
    return MaskController(adapter(Masks).validate_python(tree), weights, maskable=list(SHAPES), seed=0, steps=40)


def factors(seed: int = 1) -> dict[str, torch.Tensor]:
    """Return the gradient of `loss` to what the forward pass uses."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def loss(masks: MaskController, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum((given[name] * weight).sum() for name, weight in masks.parameters.items())


def live(masks: MaskController, optimizer: torch.optim.Optimizer, begin: int, end: int) -> None:
    """Take the steps from `begin` to `end`."""
    for step in range(begin, end + 1):
        optimizer.zero_grad()
        with masks.forward(step):
            loss(masks, factors(step)).backward()
        masks.observe(step, {name: weight.grad for name, weight in masks.parameters.items()})
        masks.mask_gradients()
        masks.pull(step)
        optimizer.step()
        masks.mask_weights()
        masks.step(step, optimizer)


def test_the_gradients_of_str_are_those_of_the_paper():
    """Section 3: 1{|w| > g} times what comes back for w, and for s - g'(s) times the sum of its parts along sign(w)."""
    masks, given = controller({"name": "str", "initial": -0.5}), factors()
    before = {name: weight.detach().clone() for name, weight in masks.parameters.items()}
    g = 1.0 / (1.0 + math.exp(0.5))
    with masks.forward(1):
        for name, weight in before.items():
            shrunk = torch.where(weight.abs() > g, weight - g * weight.sign(), 0.0)
            assert torch.allclose(masks.parameters[name], shrunk, atol=1e-6)
        loss(masks, given).backward()
    for name, weight in before.items():
        assert torch.equal(masks.parameters[name], weight)
        inside = weight.abs() > g
        assert 0 < int(inside.sum()) < inside.numel()
        assert torch.equal(masks.parameters[name].grad, torch.where(inside, given[name], 0.0))
        slope = -g * (1.0 - g) * float((given[name].double() * weight.sign().double())[inside].sum())
        assert masks.learned[f"threshold/{name}"].grad.tolist() == pytest.approx([slope], rel=1e-4)


@pytest.mark.parametrize("name", ["str", "l0"])
def test_micro_batches_add_up_inside_and_across_forward_contexts(name):
    once, inside, across = controller(name), controller(name), controller(name)
    both = {key: factors(1)[key] + factors(2)[key] for key in SHAPES}
    with once.forward(3):
        loss(once, both).backward()
    with inside.forward(3):
        loss(inside, factors(1)).backward()
        loss(inside, factors(2)).backward()
    for seed in (1, 2):
        with across.forward(3):
            loss(across, factors(seed)).backward()
    for masks in (inside, across):
        for key in ("parameters", "learned"):
            for one, other in zip(getattr(once, key).values(), getattr(masks, key).values(), strict=True):
                assert torch.allclose(one.grad, other.grad, atol=1e-5)


def test_decay_raises_the_thresholds_until_enough_is_out():
    """The schedule aims at 0.8 all the time; both thresholds are 8 away from a half, by 1 % less in each step."""
    masks = controller({"name": "str", "decay": 0.01}, schedule="constant")
    for step in range(1, 11):
        masks.pull(step)
    for each in masks.learned.values():
        assert each.tolist() == pytest.approx([-8.0 * 0.99**10], rel=1e-5)
    with torch.no_grad():
        for weight in masks.parameters.values():
            weight.mul_(1e-6)
    masks.pull(11)
    for each in masks.learned.values():
        assert each.tolist() == pytest.approx([-8.0 * 0.99**10], rel=1e-5)


@pytest.mark.parametrize("name", ["str", "l0"])
def test_a_model_learns_as_if_it_were_written_with_the_formula(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10)).double()
    names, x = ["0.weight", "2.weight"], torch.randn(5, 20, dtype=torch.float64)
    config = adapter(Masks).validate_python({"method": name, "distribution": "global", "every": 10})
    masks = MaskController(config, dict(model.named_parameters()), maskable=names, seed=0, steps=40)
    learned = {key.partition("/")[2]: each for key, each in masks.learned.items()}
    with torch.no_grad():
        for each in learned.values():
            each.fill_(-2.5 if name == "str" else -1.0)
    with masks.forward():
        model(x).square().mean().backward()
    leaves = [*model.parameters(), *learned.values()]
    weights = {}
    for key in names:
        w, own = model.get_parameter(key), learned[key]
        soft = torch.clamp(w - torch.sigmoid(own), min=0) + torch.clamp(w + torch.sigmoid(own), max=0)
        weights[key] = soft if name == "str" else w * torch.clamp(torch.sigmoid(own) * 1.2 - 0.1, 0, 1)
    value = torch.func.functional_call(model, weights, (x,)).square().mean()
    for leaf, expected in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
        assert leaf.grad.abs().max() > 0 and torch.allclose(leaf.grad, expected.to(leaf.dtype), rtol=1e-5)


def gates(log_alpha: float, u: torch.Tensor) -> torch.Tensor:
    """Return hard concrete gates by the paper's text: stretched to (-0.1, 1.1), temperature 2/3."""
    s = 1.0 / (1.0 + torch.exp(-(torch.log(u) - torch.log(1.0 - u) + log_alpha) / (2.0 / 3.0)))
    return torch.clamp(s * 1.2 - 0.1, 0.0, 1.0)


GRID = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000  # midpoints: an integral over u


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 1.0])
def test_gates_have_the_moments_of_the_hard_concrete_distribution(log_alpha):
    rule, expected = method("l0"), gates(log_alpha, GRID)
    weight, learned = torch.ones(500_000), torch.full((500_000,), log_alpha)
    drawn = rule.effective(weight, learned, torch.Generator().manual_seed(0))
    # Five standard deviations of a share over half a million draws are at most 0.0036.
    assert float((drawn == 0).double().mean()) == pytest.approx(float((expected == 0).double().mean()), abs=4e-3)
    assert float((drawn == 1).double().mean()) == pytest.approx(float((expected == 1).double().mean()), abs=4e-3)
    assert float(drawn.double().mean()) == pytest.approx(float(expected.mean()), abs=4e-3)


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 1.0])
def test_the_pull_of_l0_is_the_slope_of_the_expected_number_of_open_gates(log_alpha):
    above, below = (float((gates(log_alpha + h, GRID) > 0).double().mean()) for h in (0.05, -0.05))
    learned = nn.Parameter(torch.full((3,), log_alpha))
    with torch.no_grad():
        method("l0", penalty=0.5).press(learned)
    assert ((log_alpha - learned) / 0.5).tolist() == pytest.approx([(above - below) / 0.1] * 3, rel=1e-2)


def test_in_evaluation_gates_are_those_of_the_paper_and_shut_where_the_margin_ends():
    rule, learned = method("l0"), torch.linspace(-4.0, 4.0, 801)
    found = rule.effective(torch.ones(801), learned, None)
    assert torch.allclose(found, (torch.sigmoid(learned) * 1.2 - 0.1).clamp(0, 1))
    assert torch.equal(found > 0, rule.margin(torch.ones(801), learned) > 0)
    assert float(learned[found > 0].min()) == pytest.approx(math.log(1 / 11), abs=0.01)


def test_gradients_through_gates_are_those_of_differences_and_draws_are_of_the_step():
    masks, given = controller("l0", torch.float64), factors()

    def value(step: int | None) -> float:
        with masks.forward(step), torch.no_grad():
            return float(loss(masks, given))

    with masks.forward(5):
        loss(masks, given).backward()
    for tensor in (masks.parameters["a"], masks.learned["gate/a"]):
        flat = tensor.detach().view(-1)
        for place in (0, 17, 599):
            at = float(flat[place])
            values = []
            for h in (1e-6, -1e-6):
                flat[place] = at + h
                values.append(value(5))
            flat[place] = at
            assert float(tensor.grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-5)
    assert value(5) == value(5) != value(6) and value(None) == value(None) not in (value(5), value(6))


@pytest.mark.parametrize("name", ["str", "l0"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_after_the_last_update_the_budget_is_exact_and_a_plain_sparse_model_trains(name, kind):
    masks = controller({"name": name, "rate": 1.0})
    optimizer = kind(list(masks.parameters.values()), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    masks.join(optimizer)
    live(masks, optimizer, 1, 29)
    assert masks.learns and not masks.limits
    optimizer.zero_grad()
    live(masks, optimizer, 30, 30)
    assert not masks.learns and sum(masks.masks.counts().values()) == 180
    learned = {key: each.detach().clone() for key, each in masks.learned.items()}
    before = {key: weight.detach().clone() for key, weight in masks.parameters.items()}
    with masks.forward(31):
        for key, weight in masks.parameters.items():
            assert torch.equal(weight, before[key]) and torch.all(weight[~masks.masks.masks[key]] == 0)
    live(masks, optimizer, 31, 40)
    assert all(torch.equal(each, learned[key]) for key, each in masks.learned.items())
    assert all(not torch.equal(weight, before[key]) for key, weight in masks.parameters.items())
    assert {key for key in masks.limits if key in masks.learned} == set(masks.learned)


@pytest.mark.parametrize("name", ["str", "l0"])
def test_the_last_update_keeps_the_largest_margins_of_all_tensors_at_their_effective_values(name):
    masks = controller(name)
    with torch.no_grad():
        for number, each in enumerate(masks.learned.values()):
            each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(number)))
    weights = {key: weight.detach().clone() for key, weight in masks.parameters.items()}
    with masks.forward():
        used = {key: weight.detach().clone() for key, weight in masks.parameters.items()}
    masks.step(30, None)
    learned = {key.partition("/")[2]: each.detach() for key, each in masks.learned.items()}
    margin = {key: weight.abs() - learned[key].sigmoid() for key, weight in weights.items()}
    margin = margin if name == "str" else learned
    edge = torch.cat([each.flatten() for each in margin.values()]).sort(descending=True).values[179]
    for key, mask in masks.masks.masks.items():
        assert torch.equal(mask, margin[key] >= edge)
        assert torch.equal(masks.parameters[key], torch.where(mask, used[key], 0.0))


@pytest.mark.parametrize("name", ["str", "l0"])
def test_what_has_been_learned_goes_round_and_is_looked_at_first(name):
    masks, again = controller({"name": name, "rate": 1.0}), controller({"name": name, "rate": 1.0})
    optimizer = torch.optim.SGD(list(masks.parameters.values()), lr=0.1)
    masks.join(optimizer)
    live(masks, optimizer, 1, 12)
    state = masks.state_dict()
    again.load_state_dict(state)
    assert all(torch.equal(each, masks.learned[key]) for key, each in again.learned.items())
    key = next(iter(masks.learned))
    for broken in ({}, {key: torch.zeros(2)}, {key: torch.full_like(masks.learned[key], math.nan)}):
        with pytest.raises(ValueError, match=key):
            again.load_state_dict({**state, "method": broken})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"distribution": "erk"}, r"masks\.distribution: erk with str, which learns how .*; allowed: global"),
        ({"rules": {"a": 0.5}}, r"masks\.rules: with str, .*; allowed: none"),
        ({"sparsity": 0.0}, r"masks\.sparsity: 0\.0 with str, .*; allowed: above 0"),
        ({"structure": "row"}, r"masks\.structure: row with str; allowed: unstructured"),
    ],
)
def test_what_shares_out_a_budget_beside_a_method_that_learns_to_is_refused(options, says):
    with pytest.raises(JobError, match=says):
        controller("str", **options)


@pytest.mark.parametrize("method", ["str", {"name": "l0", "penalty": 0.2}])
def test_a_job_that_names_no_distribution_gets_the_one_that_goes_with_learning(method):
    assert parse({"name": "x", "masks": {"method": method}}).masks.distribution.name == "global"
