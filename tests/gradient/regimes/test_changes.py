"""Each bucket by its own way, and what a change of ways keeps."""

import itertools
import random

import pytest
import torch
from ranks import gloo_ranks
from under_way import under_way

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import GradientExchange

SHAPES = {"a": (30, 40), "b": (40, 30), "c": (20, 60), "bias": (30,)}
BASE = {"density": 0.05, "dense_below": 100, "bucket_elements": 1200}
WAYS = [
    {"regime": "dense", "values": "fp32"},
    {"regime": "dense"},
    {"regime": "packed", "values": "fp32"},
    {"regime": "packed", "values": "int8"},
    {"density": 0.1, "collective": "split_reduce", "indices": "elias_fano"},
    {"collective": "ok_topk", "values": "int4"},
    {"collective": "gtopk", "values": "int8"},
    {"collective": {"name": "hierarchical", "group": 2}},
    {"collective": "recursive_doubling"},
    {"sparsifier": "randomk", "collective": "packed"},
    {"regime": "lowrank", "rank": 2},
    {"regime": "lowrank", "rank": 1},
]


def config(**options) -> Exchange:
    return adapter(Exchange).validate_python(BASE | options)


def gradients(rank: int, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def masks(epoch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return {name: torch.rand(SHAPES[name], generator=generator) < 0.6 for name in ("a", "b")}


def full(exchange: GradientExchange) -> dict[str, torch.Tensor]:
    parts = {name: part.clone() for name, part in exchange.small.bucket.split(exchange.small.rest).items()}
    for channel in exchange.channels:
        parts |= {name: part.clone() for name, part in channel.bucket.split(channel.dense("residual")).items()}
    return parts


def changing(world: World, steps: int = 10) -> list[tuple[dict, dict, dict]]:
    """Aggregate with other ways of all buckets at every second step; per step the mean, residuals before and after."""
    exchange, chooser, seen = under_way(config(), SHAPES, world, steps), random.Random(3), []
    for step in range(steps):
        if step in (0, 4):
            exchange.set_masks(masks(step), step)
        if step % 2 == 0:
            exchange.set_regimes([config(**chooser.choice(WAYS)) for _ in exchange.channels])
        before = full(exchange)
        means = exchange.aggregate(gradients(world.rank, step))
        assert means is not None
        seen.append(({name: mean.clone() for name, mean in means.items()}, before, full(exchange)))
    exchange.close()
    return seen


def test_mass_is_conserved_through_all_changes():
    ranks = Simulation(3).run(changing)
    for step, (name, shape) in itertools.product(range(10), SHAPES.items()):
        inside = masks(0 if step < 4 else 4).get(name, torch.ones(shape, dtype=torch.bool))
        old, new = (sum(rank[step][at][name].double() for rank in ranks) for at in (1, 2))
        given = sum(torch.where(inside, gradients(rank, step)[name], 0.0).double() for rank in range(3))
        mean = ranks[0][step][0][name]
        assert torch.allclose(new + 3 * mean.double(), old + given, atol=2e-5)
        assert not mean[~inside].any() and not new[~inside].any()
        assert all(torch.equal(mean, rank[step][0][name]) for rank in ranks)


@pytest.mark.timeout(60)
def test_real_ranks_hold_the_same_bits_through_all_changes():
    one, two = gloo_ranks(2, changing)
    for (mean, _, _), (other, _, _) in zip(one, two, strict=True):
        assert all(torch.equal(mean[name], other[name]) for name in SHAPES)


@pytest.mark.parametrize("regime", ["dense", "packed"])
def test_a_lossless_step_after_lossy_ones_sends_what_they_kept(regime):
    def body(world: World) -> tuple:
        exchange = under_way(config(), SHAPES, world, 4)
        assert not any(each.lossless for each in exchange.regimes)
        for step, way in enumerate(({}, {"regime": "lowrank", "rank": 1})):
            exchange.set_regimes([config(**way)] * len(exchange.channels))
            exchange.aggregate(gradients(world.rank, step))
        kept = full(exchange)
        exchange.set_regimes([config(regime=regime, values="fp32")] * len(exchange.channels))
        assert all(each.lossless for each in exchange.regimes)
        means = exchange.aggregate(gradients(world.rank, 2))
        return kept, {name: means[name].clone() for name in SHAPES}, full(exchange)

    ranks = Simulation(2).run(body)
    for name in ("a", "b", "c"):
        whole = sum(rank[0][name] + gradients(r, 2)[name] for r, rank in enumerate(ranks)) / 2
        assert ranks[0][0][name].norm() > 1
        assert torch.allclose(ranks[0][1][name], whole, atol=1e-6)
        assert not any(rank[2][name].any() for rank in ranks)
