import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moments import method, moment

from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.reallocation import share_out

PLACES = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=6)


@given(PLACES, st.integers(0, 400))
def test_shares_sum_to_the_total_and_stay_within_rooms(places, total):
    wishes = {str(n): wish for n, (wish, _) in enumerate(places)}
    rooms = {str(n): room for n, (_, room) in enumerate(places)}
    given_ = share_out(total, wishes, rooms)
    assert sum(given_.values()) == min(total, sum(rooms.values()))
    assert all(0 <= given_[name] <= rooms[name] for name in rooms)
    whole = math.fsum(wishes.values())
    if whole and all(total * (wish / whole) <= rooms[name] - 1 for name, wish in wishes.items()):
        # Nobody is full: each is within one of its share.
        assert all(abs(given_[name] - total * (wish / whole)) < 1 + 1e-6 for name, wish in wishes.items())


def test_shares_by_hand():
    assert share_out(10, {"a": 1, "b": 3}, {"a": 99, "b": 99}) == {"a": 3, "b": 7}  # 2.5 each: the earlier first
    assert share_out(10, {"a": 1, "b": 9}, {"a": 99, "b": 4}) == {"a": 6, "b": 4}
    assert share_out(9, {"a": 0, "b": 9}, {"a": 8, "b": 4}) == {"a": 5, "b": 4}


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)


def test_snfs_gives_what_is_dropped_to_the_layer_of_larger_momentum_and_grows_where_that_is_largest():
    """Two layers of 8, four active in each; at drop fraction 1/2 each keeps two, four are free. Mean momenta of the
    active are 3 and 1: three go to the first and one to the second."""
    rule = method("snfs", drop_fraction=0.5)
    weight = vector([9.0, 8, 1, 2, 0, 0, 0, 0])
    one = vector([3.0, -3, 3, -3, 5, -7, 0, 6])
    two = vector([1.0, 1, -1, 1, 9, 0, 0, 0])
    mask = torch.arange(8) < 4
    moments = {
        "a": moment(weight, mask, 4, name="a", signal=one),
        "b": moment(weight, mask, 4, name="b", signal=two),
    }
    counts = rule.allocate(moments, {"a": 4, "b": 4})
    assert counts == {"a": 5, "b": 3}
    new = {name: rule.update(moment(weight, mask, counts[name], signal=m.signal)) for name, m in moments.items()}
    assert new["a"].tolist() == [True, True, False, False, True, True, False, True]
    assert new["b"].tolist() == [True, True, False, False, True, False, False, False]


def test_the_momentum_of_snfs_is_a_moving_average_that_ranks_may_average_last():
    rule = method("snfs", momentum=0.75)
    gradients = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def average(steps: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(5, dtype=torch.float64)
        for gradient in steps:
            total = rule.decay * total + (1 - rule.decay) * gradient
        return total

    config = {"method": {"name": "snfs", "momentum": 0.75}, "sparsity": 0.5, "every": 9}
    weight = {"w": torch.nn.Parameter(torch.ones(1, 5))}
    masks = MaskController(adapter(Masks).validate_python(config), weight, maskable=["w"], seed=0, steps=20)
    for step, gradient in enumerate(gradients[0], 1):
        masks.observe(step, {"w": gradient.float().view(1, 5)})
    assert torch.allclose(masks.source.kept["w"].double().view(5), average(gradients[0]), atol=1e-6)
    of_means, mean = average(gradients.mean(0)), (average(gradients[0]) + average(gradients[1])) / 2
    assert torch.allclose(of_means, mean, atol=1e-12)


def test_dsr_drops_below_one_threshold_and_grows_in_proportion_to_what_is_left():
    rule = method("dsr", threshold=1.0)
    mask = torch.arange(12) < 4
    weights = {"a": vector([2.0, -3, 4, 0.5] + [0] * 8), "b": vector([0.9, -5, 0.1, 0.2] + [0] * 8)}
    moments = {name: moment(weight, mask, 4, name=name) for name, weight in weights.items()}
    # Four are dropped; the survivors are three and one: three grow in the first layer, one in the second.
    assert rule.allocate(moments, {"a": 4, "b": 4}) == {"a": 6, "b": 2}
    new = rule.update(moment(weights["a"], mask, 6))
    assert new[:3].all() and int(new.sum()) == 6
    assert int(rule.update(moment(weights["b"], mask, 1))[1]) == 1


@pytest.mark.parametrize(("fraction", "expected"), [(0.25, 0.5), (0.46, 1.0), (0.5, 1.0), (0.55, 1.0), (0.75, 2.0)])
def test_the_threshold_of_dsr_moves_by_two_where_it_misses_by_a_tenth(fraction, expected):
    """Four of eight active weights are below 1; more than 1.1 x what should be halves it, less than 0.9 x doubles."""
    rule = method("dsr", threshold=1.0, drop_fraction=fraction)
    weight = vector([0.1, -0.2, 0.3, 0.4, 5, 6, -7, 8, 0, 0])
    masks = MaskSet({"w": torch.arange(10) < 8})
    assert rule.settle(masks, masks, {"w": weight}, {}) == {}
    assert rule.threshold == expected
    again = method("dsr")
    again.load_state(rule.state())
    assert again.threshold == expected


def test_budgets_move_by_whole_blocks():
    rule = method("dsr", threshold=1.0)
    blocks = Layout((4, 4), 1, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    weights = {"a": torch.full((4, 4), 2.0), "b": torch.full((4, 4), 0.5)}
    weights["b"][0] = 3.0
    moments = {name: moment(weight, mask, 8, name=name, layout=blocks) for name, weight in weights.items()}
    assert rule.allocate(moments, {"a": 8, "b": 8}) == {"a": 12, "b": 4}


@pytest.mark.parametrize("name", ["snfs", "dsr"])
@pytest.mark.parametrize("structure", ["row", "fan_in"])
def test_structures_of_unequal_units_or_equal_groups_are_refused(name, structure):
    tree = {"method": name, "structure": structure, "distribution": "uniform"}
    weight = {"w": torch.nn.Parameter(torch.ones(4, 5))}
    with pytest.raises(JobError, match=rf"masks\.structure: {structure} with {name}; allowed: unstructured, block"):
        MaskController(adapter(Masks).validate_python(tree), weight, maskable=["w"], seed=0, steps=20)


@pytest.mark.parametrize("name", ["snfs", "dsr"])
def test_a_tensor_with_a_rule_keeps_its_count(name):
    draw = torch.Generator().manual_seed(0)
    weights = {key: torch.nn.Parameter(torch.randn(10, 10, generator=draw)) for key in ("a", "b", "c")}
    tree = {"method": name, "sparsity": 0.8, "every": 2, "rules": {"b": 0.5}, "distribution": "uniform"}
    masks = MaskController(adapter(Masks).validate_python(tree), weights, maskable=["a", "b", "c"], seed=0, steps=40)
    for step in range(1, 20):
        masks.observe(step, {key: 1 + torch.randn(10, 10, generator=draw) * (1 + (key == "a")) for key in weights})
        masks.step(step, None)
    counts = masks.masks.counts()
    assert counts["b"] == 50 and counts["a"] + counts["c"] == 40 and counts["a"] != 20
