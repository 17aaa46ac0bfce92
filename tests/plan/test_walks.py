"""Walks of the collectives against the formulas that hold where processors take no time and all begin together."""

import numpy as np
import pytest

from sparsetrain import registry
from sparsetrain.bench.simulation import Plan
from sparsetrain.collective.collective import Load
from sparsetrain.plan.costs import Costs, measure
from sparsetrain.plan.fabric import Fabric, Level, flat
from sparsetrain.plan.fill import Random
from sparsetrain.plan.rest import with_rest
from sparsetrain.plan.walks import WALKS, Work, gather, reduce

RATE, LATENCY = 1e8, 1e-4
FREE = Costs()


def work(size: int = 1_000_000, count: int = 10_000, costs: Costs = FREE, values: str = "fp32", **more) -> Work:
    codec = Plan(indices="int32", values=values).codec()
    return Work(size=size, count=count, codec=codec, costs=costs, fill=Random(), **more)


def seconds(name: str, ranks: int, about: Work, latency: float = LATENCY) -> float:
    fabric = flat(ranks, RATE, latency)
    return float(WALKS[name](fabric, np.zeros(ranks), about).max())


def test_every_collective_has_a_walk():
    assert set(registry.names("collective")) <= set(WALKS)


@pytest.mark.parametrize("ranks", [2, 3, 8, 100, 1000])
def test_rings_take_what_the_formula_says(ranks):
    fabric = flat(ranks, RATE, LATENCY)
    each = gather(fabric, np.zeros(ranks), 50_000.0)
    assert each == pytest.approx(np.full(ranks, (ranks - 1) * (50_000 / RATE + LATENCY)))
    fabric.rest()
    summed = reduce(fabric, np.zeros(ranks), 1e6, 0.0)
    assert summed == pytest.approx(np.full(ranks, 2 * (ranks - 1) * (1e6 / ranks / RATE + LATENCY)))


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("name", ["allgather", "split_reduce", "ok_topk", "gtopk", "packed", "dense"])
def test_bytes_on_the_links_are_those_of_the_collectives_formula(name, ranks):
    cls = registry.load("collective", name)
    count = 1_000_000 if name in ("packed", "dense") else 10_000
    volume = cls(cls.Config()).volume(Load(ranks, 1_000_000, count, 8, 4))
    assert seconds(name, ranks, work(), latency=0.0) == pytest.approx(volume.bytes / RATE, rel=0.1)


def test_a_rank_that_comes_late_makes_all_wait_but_no_longer_than_it_must():
    late = np.zeros(8)
    late[3] = 1.0
    for name, walk in WALKS.items():
        about = work(factor=(1000, 1000), rank=1)
        even = float(walk(flat(8, RATE, LATENCY), np.zeros(8), about).max())
        found = float(walk(flat(8, RATE, LATENCY), late, about).max())
        assert 1.0 < found <= 1.0 + even * 1.01, name


def test_sums_inside_nodes_save_what_leaves_them():
    levels = [
        Level(name="node", members=8, rate=1e11, latency_s=1e-6),
        Level(name="network", members=8, rate=RATE, latency_s=LATENCY),
    ]
    about = work(group=8)
    found = {
        name: float(WALKS[name](Fabric(levels, 64), np.zeros(64), about).max()) for name in WALKS if name != "lowrank"
    }
    assert found["hierarchical"] < found["allgather"] / 6
    assert found["hierarchical"] == pytest.approx(7 * 80_000 / RATE, rel=0.15)


def test_processors_that_take_their_time_are_counted_once_each():
    slow = Costs(decode_entry_s=1e-6)
    more = seconds("allgather", 4, work(costs=slow)) - seconds("allgather", 4, work())
    assert more == pytest.approx(4 * 10_000 * 1e-6)


def test_rings_of_thousands_are_cut_short_without_a_difference(monkeypatch):
    from sparsetrain.plan import walks

    levels = [
        Level(name="node", members=8, rate=1e10, latency_s=1e-6),
        Level(name="network", members=64, rate=RATE, latency_s=LATENCY),
    ]
    short = float(gather(Fabric(levels, 512), np.zeros(512), 50_000.0).max())
    monkeypatch.setattr(walks, "STRIDE", 10_000)
    assert short == pytest.approx(float(gather(Fabric(levels, 512), np.zeros(512), 50_000.0).max()), rel=0.01)


def test_costs_are_measured_and_scale():
    costs = measure(Plan().codec(), 0.01)
    assert all(value >= 0 for name, value in vars(costs).items() if name != "rest")
    assert min(costs.select_element_s, costs.decode_value_s, costs.pass_element_s, costs.call_s) > 0
    whole = with_rest(costs, Plan().codec(), 0.01)
    assert {name for name, _ in whole.rest} == set(registry.names("collective"))
    assert whole.unexplained("packed", 2_000_000) == 2 * whole.unexplained("packed", 1_000_000) >= 0
    twice, thrice = whole.scaled(2.0), whole.scaled(3.0)
    assert Costs.middle([whole, thrice, twice]) == twice
    assert costs.scaled(2.0).decode(1000) == pytest.approx(2 * costs.decode(1000))
