"""Two levels: who owns what, how many bytes leave a node, and state that moves to its owner."""

import pytest
import torch

from sparsetrain.collective.collective import Load
from sparsetrain.collective.hierarchical import Hierarchical
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import GradientExchange

SHAPES = {"a": (40, 30), "b": (30, 40), "bias": (30,)}


def config(group: int, **options) -> Exchange:
    collective = {"name": "hierarchical", "group": group}
    given = {
        "density": 0.1,
        "dense_below": 50,
        "bucket_elements": 1200,
        "values": "fp32",
        "collective": collective,
        "overlap": False,
    }
    return adapter(Exchange).validate_python(given | options)


def gradient(rank: int, step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def full(exchange: GradientExchange, field: str = "residual") -> torch.Tensor:
    return torch.cat([channel.dense(field).clone() for channel in exchange.channels])


@pytest.mark.parametrize(("ranks", "group"), [(4, 2), (5, 2), (6, 3), (6, 4), (3, 1), (4, 0), (7, 7)])
def test_parts_are_owned_once_in_each_group_and_residuals_live_with_their_owners(ranks, group):
    def body(world: World):
        exchange = GradientExchange(config(group), SHAPES, world, 4)
        given, sent = torch.zeros(2400, dtype=torch.float64), torch.zeros(2400, dtype=torch.float64)
        for step in range(3):
            own = gradient(world.rank, step)
            means = exchange.aggregate(own)
            given += torch.cat([own[name].flatten() for name in ("a", "b")])
            sent += torch.cat([means[name].flatten() for name in ("a", "b")])
        regime = exchange.regimes[0]
        places = [regime.levels.place(channel.index, world) for channel in exchange.channels]
        parts, start = [], 0
        for place, channel in zip(places, exchange.channels, strict=True):
            low, high = place.edges(place.number, channel.size)
            parts.append((start + low, start + high))
            start += channel.size
        assert start == 2400
        return given, sent, full(exchange), places[0], parts, exchange.stats.sent

    found = Simulation(ranks).run(body)
    assert all(torch.equal(sent, found[0][1]) for _, sent, *_ in found)
    total = sum(given for given, *_ in found)
    kept = sum(residual.double() for _, _, residual, *_ in found)
    assert torch.allclose(kept + ranks * found[0][1], total, atol=1e-4)
    place = found[0][3]
    width = group or ranks
    assert [len(each) for each in place.groups] == [len(range(ranks)[i : i + width]) for i in range(0, ranks, width)]
    for _, _, residual, own, parts, sent in found:
        inside = torch.zeros(2400, dtype=torch.bool)
        for low, high in parts:
            inside[low:high] = True
        assert not residual[~inside].any()
        assert (sent > 0) == (own.number < own.shards)


def test_one_group_selects_from_the_sum_of_its_ranks():
    """Two ranks whose gradients cancel at a place send nothing of it: the sum is what counts."""

    def body(world: World):
        exchange = GradientExchange(config(2, density=0.25, dense_below=1), {"w": (4, 8)}, world, 4)
        gradient = torch.ones(4, 8)
        gradient[0] = 100.0 if world.rank % 2 else -100.0
        gradient[:, 3] = 5.0
        return exchange.aggregate({"w": gradient})["w"].clone()

    found = Simulation(4).run(body)
    assert all(torch.equal(mean, found[0]) for mean in found)
    assert torch.equal(torch.nonzero(found[0][1:, 3]).flatten(), torch.arange(3))
    assert found[0][0].count_nonzero() <= 1  # only the fives of row 0


def test_bytes_between_groups_follow_the_formula():
    size, k, ranks, group = 40_000, 400, 4, 2
    shape = {"w": (200, 200)}

    def body(world: World):
        exchange = GradientExchange(
            config(group, density=k / size, indices="int32", bucket_elements=1 << 20), shape, world, 4
        )
        draw = torch.Generator().manual_seed(world.rank)
        for _ in range(2):
            before = world.transport.meter.total
            exchange.aggregate({"w": torch.randn(200, 200, generator=draw)})
        return world.transport.meter.total - before

    volume = Hierarchical(Hierarchical.Config(group=group)).volume(Load(ranks, size, k, 8, 4))
    assert volume.bytes == k / 2 * 8
    sent = sum(Simulation(ranks).run(body)) / ranks
    assert sent == pytest.approx(volume.bytes + volume.near, abs=600)


@pytest.mark.parametrize("feedback", ["ef14", "dgc", "ef21", "ef21_sgdm"])
def test_state_of_another_way_goes_to_its_owners_and_keeps_its_sum(feedback):
    def body(world: World):
        flat = config(2, collective="allgather", error_feedback=feedback)
        levels = config(2, error_feedback=feedback)
        exchange = GradientExchange(flat, SHAPES, world, 10)
        sums = []
        for step in range(6):
            exchange.set_regimes([levels if step % 4 in (2, 3) else flat] * len(exchange.channels))
            state = {field: full(exchange, field) for field in exchange.feedback.fields}
            own = gradient(world.rank, step)
            means = exchange.aggregate(own)
            sums.append((state, own, {name: mean.clone() for name, mean in means.items()}))
        sums.append(({field: full(exchange, field) for field in exchange.feedback.fields}, None, None))
        return sums

    found = Simulation(4).run(body)
    for step in range(6):
        mean = torch.cat([found[0][step][2][name].flatten() for name in ("a", "b")]).double()
        assert all(torch.equal(found[0][step][2]["a"], rank[step][2]["a"]) for rank in found)
        before, after = (
            {field: sum(rank[at][0][field].double() for rank in found) for field in found[0][0][0]}
            for at in (step, step + 1)
        )
        given = sum(torch.cat([rank[step][1][name].flatten() for name in ("a", "b")]).double() for rank in found)
        if feedback == "ef14":
            assert torch.allclose(after["residual"] + 4 * mean, before["residual"] + given, atol=1e-4)
        elif feedback == "dgc":
            velocity = 0.9 * before["momentum"] + given
            assert torch.allclose(after["residual"] + 4 * mean, before["residual"] + velocity, atol=1e-4)
        else:
            assert torch.allclose(after["local"] / 4, after["estimate"] / 4, atol=1e-5)
            assert torch.allclose(after["estimate"] / 4, mean, atol=1e-5)


def test_a_step_that_is_skipped_moves_nothing():
    def body(world: World):
        exchange = GradientExchange(config(2, collective="allgather"), SHAPES, world, 10)
        exchange.aggregate(gradient(world.rank, 0))
        before = full(exchange)
        exchange.set_regimes([config(2)] * len(exchange.channels))
        bad = gradient(world.rank, 1)
        if world.rank == 1:
            bad["a"][0, 0] = float("nan")
        skipped = exchange.aggregate(bad) is None
        same = torch.equal(before, full(exchange))
        exchange.aggregate(gradient(world.rank, 1))
        return skipped, same, before, full(exchange)

    found = Simulation(4).run(body)
    assert all(skipped and same for skipped, same, *_ in found)
    assert not any(torch.equal(before, after) for _, _, before, after in found)
