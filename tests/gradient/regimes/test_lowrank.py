"""PowerSGD as a regime: exact where it can be, against an oracle of its own, the same on all ranks, resumable."""

import functools

import numpy as np
import pytest
import torch
from ranks import gloo_ranks
from under_way import under_way

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.gradient.layout import Bucket
from sparsetrain.gradient.regimes.lowrank import orthonormalise, plan, start

SHAPES = {"a": (40, 30), "conv": (16, 8, 3, 3), "b": (30, 40), "bias": (40,), "thin": (200, 3)}


def config(**options) -> Exchange:
    return adapter(Exchange).validate_python(
        {"regime": "lowrank", "rank": 2, "dense_below": 100, "bucket_elements": 1500, **options}
    )


def draw(rank: int, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def mask() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {name: torch.rand(SHAPES[name], generator=generator) < 0.3 for name in ("a", "conv")}


def run(world: World, steps: int, **options) -> list[dict[str, torch.Tensor]]:
    exchange = under_way(config(**options), SHAPES, world, steps)
    found = []
    for step in range(steps):
        means = exchange.aggregate(draw(world.rank, step))
        assert means is not None
        found.append({name: mean.clone() for name, mean in means.items()})
    exchange.close()
    return found


def true_mean(ranks: int, step: int) -> dict[str, torch.Tensor]:
    drawn = [draw(rank, step) for rank in range(ranks)]
    return {name: torch.stack([each[name] for each in drawn]).mean(0) for name in SHAPES}


def test_full_rank_is_the_mean():
    for found in Simulation(2).run(lambda world: run(world, 2, rank=10_000, values="fp32")):
        for step, means in enumerate(found):
            for name, mean in true_mean(2, step).items():
                assert torch.allclose(means[name], mean, atol=1e-6)


def test_factors_of_full_rank_give_back_the_matrix(monkeypatch):
    """Through the factors, which the test above leaves out because they would not be shorter."""
    monkeypatch.setattr("sparsetrain.gradient.regimes.lowrank.WORTH", 100.0)
    for found in Simulation(2).run(lambda world: run(world, 1, rank=10_000, values="fp32")):
        for name, mean in true_mean(2, 0).items():
            assert torch.allclose(found[0][name], mean, atol=2e-4), name


def oracle(matrices: list[list[np.ndarray]], right: np.ndarray) -> list[np.ndarray]:
    """PowerSGD of one matrix in double precision: `matrices[step][rank]` to the means. QR for Gram-Schmidt."""
    errors = [np.zeros_like(matrices[0][0], dtype=np.float64) for _ in matrices[0]]
    means = []
    for of_step in matrices:
        compensated = [error + matrix for error, matrix in zip(errors, of_step, strict=True)]
        left = np.linalg.qr(np.mean([each @ right for each in compensated], axis=0))[0]
        rights = [each.T @ left for each in compensated]
        errors = [each - left @ own.T for each, own in zip(compensated, rights, strict=True)]
        right = np.mean(rights, axis=0)
        means.append(left @ right.T)
    return means


def test_it_is_power_sgd():
    given = [[draw(rank, step)["a"].double().numpy() for rank in range(2)] for step in range(5)]
    expected = oracle(given, start("a", 2, 30).t().double().numpy())
    for found in Simulation(2).run(lambda world: run(world, 5)):
        for step, mean in enumerate(expected):
            assert np.allclose(found[step]["a"].numpy(), mean, atol=1e-4)


def test_warm_start_finds_the_best_approximation():
    gradient = draw(0, 0)

    def body(world: World) -> torch.Tensor:
        exchange = under_way(config(error_feedback="none"), SHAPES, world, 1)
        for _ in range(60):
            means = exchange.aggregate(gradient)
        return means["a"].clone()

    u, s, v = torch.linalg.svd(gradient["a"])
    best = (u[:, :2] * s[:2]) @ v[:2]
    for found in Simulation(2).run(body):
        assert float((found - best).norm() / best.norm()) < 0.05


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("feedback", ["ef14", "none"])
def test_mass_and_masks(masked, feedback):
    active = mask() if masked else {}

    def body(world: World) -> list[dict[str, torch.Tensor]]:
        exchange = under_way(config(error_feedback=feedback, values="fp32"), SHAPES, world, 3)
        exchange.set_masks(active, 1)
        seen = []
        for step in range(3):
            before = residual(exchange)
            means = exchange.aggregate(draw(world.rank, step))
            seen.append(
                {"before": before, "mean": {n: m.clone() for n, m in means.items()}, "after": residual(exchange)}
            )
        return seen

    ranks = Simulation(2).run(body)
    for step in range(3):
        for name in ("a", "b", "conv", "thin"):
            inside = active.get(name, torch.ones(SHAPES[name], dtype=torch.bool))
            mean = ranks[0][step]["mean"][name]
            assert not mean[~inside].any() and torch.equal(mean, ranks[1][step]["mean"][name])
            if feedback == "ef14":
                given = sum(torch.where(inside, draw(r, step)[name], 0.0) for r in range(2))
                before = sum(each[step]["before"][name] for each in ranks)
                after = sum(each[step]["after"][name] for each in ranks)
                assert torch.allclose(after + 2 * mean, before + given, atol=1e-4)
                assert not after[~inside].any()


def residual(exchange: GradientExchange) -> dict[str, torch.Tensor]:
    if "residual" not in exchange.feedback.fields:
        return {}
    return {
        name: part.clone()
        for channel in exchange.channels
        for name, part in channel.bucket.split(channel.dense("residual")).items()
    }


@pytest.mark.parametrize("size", [2, 4])
def test_real_ranks_hold_the_same_bits_with_many_buckets_under_way(size):
    ranks = gloo_ranks(size, functools.partial(run, steps=3))
    for other in ranks[1:]:
        for step in range(3):
            assert all(torch.equal(ranks[0][step][name], other[step][name]) for name in SHAPES)
    simulated = Simulation(size).run(lambda world: run(world, 3, overlap=False))
    for name in SHAPES:
        assert torch.allclose(ranks[0][2][name], simulated[0][2][name], atol=1e-4)


def test_it_goes_on_where_it_stopped():
    def body(world: World) -> bool:
        straight = under_way(config(), SHAPES, world, 4)
        for step in range(2):
            straight.aggregate(draw(world.rank, step))
        resumed = under_way(config(), SHAPES, world, 4)
        resumed.load_state(straight.state())
        resumed.step = straight.step
        same = True
        for step in range(2, 4):
            one, other = straight.aggregate(draw(world.rank, step)), resumed.aggregate(draw(world.rank, step))
            same = same and all(torch.equal(one[name], other[name]) for name in SHAPES)
        return same

    assert all(Simulation(2).run(body))


@pytest.mark.parametrize("damage", ["nan", "shape", "dtype"])
def test_a_damaged_factor_is_left_out(damage):
    def body(world: World) -> bool:
        exchange = under_way(config(), SHAPES, world, 4)
        exchange.aggregate(draw(world.rank, 0))
        state = exchange.state()
        wrong = {"nan": torch.full((2, 30), torch.nan), "shape": torch.ones(3), "dtype": torch.ones(2, 30).double()}
        fresh = under_way(config(), SHAPES, world, 4)
        fresh.load_state({**state, "factor/a": wrong[damage]})
        means = fresh.aggregate(draw(world.rank, 1))
        return means is not None and all(bool(torch.isfinite(mean).all()) for mean in means.values())

    assert all(Simulation(2).run(body))


def test_what_is_not_finite_skips_the_step_and_touches_nothing():
    def body(world: World) -> bool:
        exchange = under_way(config(), SHAPES, world, 4)
        exchange.aggregate(draw(world.rank, 0))
        before = exchange.state()
        gradients = draw(world.rank, 1)
        if world.rank == 1:
            gradients["b"][3, 4] = float("inf")
        skipped = exchange.aggregate(gradients) is None
        after = exchange.state()
        return skipped and all(torch.equal(before[key], after[key]) for key in before)

    assert all(Simulation(2).run(body))


def test_bytes_are_those_of_the_formula():
    def body(world: World) -> tuple[float, float]:
        exchange = under_way(config(values="fp32"), SHAPES, world, 4)
        exchange.aggregate(draw(world.rank, 0))
        pairs = zip(exchange.channels, exchange.regimes, strict=True)
        expected = sum(regime.volume(channel, world.size, 1.0).bytes for channel, regime in pairs)
        small = 2 * 40 * 4 * (world.size - 1) / world.size
        return world.transport.meter.sent["gradient"], expected + small

    for counted, expected in Simulation(4).run(body):
        assert counted == pytest.approx(expected)


def test_a_dead_column_begins_anew():
    """A gradient of rank one leaves nothing for the second column; a later one of rank two needs it again."""
    one = torch.outer(torch.arange(40.0), torch.arange(30.0)) / 300
    two = one + torch.outer(torch.arange(40.0).flip(0), torch.ones(30))

    def body(world: World) -> float:
        exchange = under_way(config(error_feedback="none"), {"a": (40, 30)}, world, 1)
        for _ in range(3):
            exchange.aggregate({"a": one})
        for _ in range(5):
            means = exchange.aggregate({"a": two})
        return float((means["a"] - two).norm() / two.norm())

    assert all(error < 1e-3 for error in Simulation(2).run(body))


@pytest.mark.parametrize("rows", [5, 64, 1000])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_columns_are_orthonormal(rows, rank):
    drawn = torch.randn(rank, rows) * torch.logspace(0, 3, rank)[:, None] + 100.0  # nearly parallel
    factors = [drawn, drawn.clone(), torch.randn(rank, rows + 1)]
    orthonormalise(factors)
    for each in factors:
        assert torch.allclose(each @ each.t(), torch.eye(rank), atol=1e-4)


def test_what_two_factors_would_not_shorten_travels_whole():
    bucket = Bucket.of([("wide", (100, 100)), ("narrow", (100, 4)), ("vector", (50,))])
    channel = Channel(0, bucket, torch.device("cpu"))
    matrices, wholes = plan(channel, 4)
    assert [each.name for each in matrices] == ["wide"]
    assert wholes == [slice(10_000, 10_400), slice(10_400, 10_450)]
    sparse = torch.zeros(100, 100, dtype=torch.bool)
    sparse[:, :15] = True
    channel.set_masks({"wide": sparse})
    assert plan(channel, 4) == ([], [slice(0, 1500), slice(1500, 1900), slice(1900, 1950)])


@pytest.mark.parametrize("feedback", ["dgc", "ef21", "ef21_sgdm"])
def test_feedback_of_entries_is_refused(feedback):
    with pytest.raises(JobError, match=r"exchange.regime: lowrank with error_feedback .*; allowed: ef14, none"):
        GradientExchange(config(error_feedback=feedback), SHAPES, World(), 1)


@pytest.mark.parametrize(("warmup", "first"), [(0.0, 2), (0.5, 4)])
def test_the_first_exchanges_send_everything(warmup, first):
    def body(world: World):
        exchange = GradientExchange(config(warmup=warmup, values="fp32"), SHAPES, world, 8)
        lost = []
        for step in range(8):
            means = exchange.aggregate(draw(world.rank, step))
            wanted = true_mean(2, step)
            lost.append(any(not torch.allclose(means[name], wanted[name], atol=1e-5) for name in SHAPES))
        exchange.close()
        return lost

    for lost in Simulation(2).run(body):
        assert lost == [False] * first + [True] * (8 - first)
