"""`regime: auto` over real ranks: all take the same ways, and no change of way loses anything."""

import dataclasses
import functools

import pytest
import torch
from ranks import gloo_ranks

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.automatic import settings_of
from sparsetrain.gradient.calibration import measure_network, probe
from sparsetrain.gradient.exchange import WARMING, GradientExchange
from sparsetrain.gradient.stages import StageBook

SHAPES = {"a": (200, 150), "b": (100, 200), "bias": (200,)}
STEPS = 60


def config(**options) -> Exchange:
    return adapter(Exchange).validate_python(
        {"regime": "auto", "density": 0.02, "rank": 2, "bucket_elements": 40_000, "values": "fp32", **options}
    )


def gradients(rank: int, step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def mask() -> dict[str, torch.Tensor]:
    return {"a": torch.rand(SHAPES["a"], generator=torch.Generator().manual_seed(3)) < 0.2}


def body(world: World, forced: bool = False) -> dict:
    """Exchange with changing ways: the planner's, or dense, packed, sparse and lowrank by turns."""
    exchange = GradientExchange(config(replan=10, overlap=not forced), SHAPES, world, STEPS)
    exchange.set_masks(mask(), 1)
    inside = mask()["a"]
    given = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    got = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        if forced:
            names = exchange.config.allow[step % 4 :] + exchange.config.allow[: step % 4]
            exchange.planner = None
            exchange.set_regimes([settings_of(exchange.config, name) for name in names[: len(exchange.channels)]])
        drawn = gradients(world.rank, step)
        for name in SHAPES:
            given[name] += torch.where(inside, drawn[name], 0.0) if name == "a" else drawn[name]
        means = exchange.aggregate(drawn)
        assert means is not None
        for name in SHAPES:
            got[name] += means[name]
    left = {name: part for c in exchange.channels for name, part in c.bucket.split(c.dense("residual")).items()}
    left = {name: part.double() for name, part in left.items()}
    chosen = [(d.exchange, d.chosen.name) for d in exchange.planner.decisions] if exchange.planner else []
    choice = exchange.choice()
    exchange.close()
    return {"given": given, "got": got, "left": left, "chosen": chosen, "choice": choice}


def check_mass(ranks: list[dict]) -> None:
    for name in SHAPES:
        assert torch.equal(ranks[0]["got"][name], ranks[1]["got"][name])
        total = sum(each["given"][name] for each in ranks)
        left = sum(each["left"].get(name, torch.zeros(())) for each in ranks)
        assert torch.allclose(2 * ranks[0]["got"][name] + left, total, atol=1e-3)


@pytest.mark.timeout(110)
def test_ranks_agree():
    one, other = gloo_ranks(2, body, seconds=90)
    assert one["chosen"] and one["chosen"] == other["chosen"]
    assert one["choice"] and one["choice"] == other["choice"]
    check_mass([one, other])


def test_nothing_is_lost_between_ways():
    check_mass(Simulation(2).run(functools.partial(body, forced=True)))


def measured(world: World) -> tuple:
    network = measure_network(world.transport)
    again = probe(world.transport, network)
    book = StageBook(world, torch.device("cpu"))
    exchange = GradientExchange(config(), SHAPES, world, 1)
    settings = dataclasses.replace(config(), regime="sparse")
    stages = book.stages(exchange.channels, [settings] * len(exchange.channels), network, 0.02)
    count = len(book.known)
    assert book.stages(exchange.channels, [settings] * len(exchange.channels), network, 0.02) == stages
    sent = dict(world.transport.meter.sent)
    exchange.close()
    return network, again, stages, count, len(book.known), sent["control"] > 0 and sent["gradient"] == 0


@pytest.mark.timeout(110)
def test_measurements_are_the_same_on_all_ranks():
    (network, again, stages, count, later, booked), other = gloo_ranks(2, measured, seconds=90)
    assert (network, again, stages) == other[:3]
    assert 1e-6 < network.latency_s < 0.1 and 1e6 < network.gather_rate <= 1e12 and 1e6 < network.reduce_rate <= 1e12
    assert again.latency_s == network.latency_s and again.gather_rate > 0
    assert all(stage.select_s > 0 and stage.merge_s >= 0 and stage.volume.bytes > 0 for stage in stages)
    assert count == later == 1 and booked  # equal settings are measured once


def test_one_rank_alone_needs_no_network():
    network = measure_network(World().transport)
    assert network.latency_s == 0.0 and probe(World().transport, network) == network


def alone(world: World, **options) -> GradientExchange:
    return GradientExchange(config(**options), SHAPES, world, 10)


def test_one_allowed_way_is_taken():
    exchange = alone(World(), allow=("packed",))
    for step in range(8):
        exchange.aggregate(gradients(0, step))
    assert exchange.choice() == ["packed"] * len(exchange.channels)
    assert exchange.planner is not None and exchange.planner.decisions[-1].chosen.lossless


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"allow": ("dense", "dense")}, "named twice"),
        ({"error_feedback": "dgc"}, "exchange.allow: lowrank with error_feedback dgc"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(JobError, match=said):
        alone(World(), **options)


@pytest.mark.parametrize("choice", [["lowrank"], ["magic", "dense"], ["packed", "sparse", "dense"]])
def test_a_choice_that_does_not_fit_is_refused(choice):
    exchange = alone(World(), allow=("dense", "packed", "sparse"))
    with pytest.raises(ValueError, match="for 2 buckets"):
        exchange.go_on(5, choice)


def resumed(world: World) -> bool:
    exchange = GradientExchange(config(), SHAPES, world, 10)
    exchange.go_on(7, ["sparse", "lowrank"])
    exchange.aggregate(gradients(world.rank, 0))
    return exchange.choice() == ["sparse", "lowrank"] and exchange.step == 8


def test_a_resumed_run_goes_on_with_its_choice():
    assert all(Simulation(2).run(functools.partial(resumed)))


def test_packed_is_a_candidate_only_where_something_is_masked():
    exchange = alone(World())
    exchange.aggregate(gradients(0, 0))
    assert exchange.planner is not None
    assert {way.name for way in exchange.planner.ways} - {"mixed"} == {"dense", "sparse", "lowrank"}
    masked = alone(World())
    masked.set_masks(mask(), 1)
    masked.aggregate(gradients(0, 0))
    assert masked.planner is not None and "packed" in {way.name for way in masked.planner.ways}


def test_a_resumed_run_keeps_what_a_regime_that_is_not_in_use_had_learned():
    first = alone(World())
    first.planner, first.step = None, WARMING
    first.set_regimes([settings_of(first.config, "lowrank")] * 2)
    first.aggregate(gradients(0, 0))
    second = alone(World())
    second.go_on(1, ["sparse", "sparse"])
    second.load_state(first.state())
    learned = {key for key in second.state() if key.startswith("factor/")}
    assert learned == {"factor/a", "factor/b"}


def test_settings_that_make_no_sense_are_refused():
    exchange = alone(World())
    wrong = dataclasses.replace(
        settings_of(exchange.config, "sparse"), collective=config(collective="packed").collective
    )
    with pytest.raises(JobError, match="sends no places"):
        exchange.set_regimes([wrong] * 2)
