"""PowerSGD as a regime with masks, on MPI and over time: against its definition in float64, and what may not happen."""

import itertools
import math

import numpy as np
import pytest
import torch
from real_ranks import on_real_ranks
from under_way import under_way

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.gradient.regimes.lowrank import start

# Two of one shape that are not neighbours, a convolution, one too small to gain, one that stays in the small buffer.
SHAPES = {"a": (24, 40), "conv": (20, 6, 3, 3), "b": (24, 40), "tight": (9, 12), "tiny": (5, 6), "bias": (24,)}
FACTORED = ("a", "conv", "b")


def made(world: World, shapes: dict = SHAPES, **options) -> GradientExchange:
    defaults = {"regime": "lowrank", "rank": 2, "dense_below": 50, "bucket_elements": 2000, "values": "fp32"}
    return under_way(adapter(Exchange).validate_python(defaults | options), shapes, world, 8)


def gradients(rank: int, step: int, shapes: dict = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def masks(epoch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return {name: torch.rand(SHAPES[name], generator=generator) < 0.5 for name in ("a", "conv", "tight", "bias")}


def copied(means: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    assert means is not None
    return {name: mean.clone() for name, mean in means.items()}


def history(world: World, steps: int, masked: bool = False, **options) -> list[dict[str, torch.Tensor]]:
    exchange, means = made(world, **options), []
    for step in range(steps):
        if masked and step % 3 == 0:
            exchange.set_masks(masks(step), step)
        means.append(copied(exchange.aggregate(gradients(world.rank, step))))
    exchange.close()
    return means


class Reference:
    """Algorithms 1 and 2 of the paper for one matrix on all ranks, in float64, with Gram-Schmidt."""

    def __init__(self, start: np.ndarray, ranks: int) -> None:
        self.right = start.astype(np.float64)
        self.residuals: list[np.ndarray] = [np.zeros(())] * ranks

    def step(self, given: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
        matrices = [np.where(mask, e + g, 0.0) for e, g in zip(self.residuals, given, strict=True)]
        left = np.mean([m @ self.right for m in matrices], 0)
        for column in range(left.shape[1]):
            for before in range(column):
                left[:, column] -= left[:, before] * (left[:, before] @ left[:, column])
            left[:, column] /= np.linalg.norm(left[:, column])
        own = [m.T @ left for m in matrices]
        self.residuals = [np.where(mask, m - left @ q.T, 0.0) for m, q in zip(matrices, own, strict=True)]
        self.right = np.mean(own, 0)
        return np.where(mask, left @ self.right.T, 0.0)


@pytest.mark.parametrize("masked", [False, True])
def test_means_and_residuals_are_those_of_the_paper(masked):
    def body(world: World) -> tuple[list, dict]:
        exchange, means = made(world), []
        for step in range(6):
            if masked and step % 3 == 0:
                exchange.set_masks(masks(step), step)
            means.append(copied(exchange.aggregate(gradients(world.rank, step))))
        kept = {}
        for channel in exchange.channels:
            kept |= channel.bucket.split(channel.dense("residual"))
        return means, kept

    ranks = Simulation(3).run(body)
    for name in FACTORED:
        rows = SHAPES[name][0]
        reference = Reference(start(name, 2, math.prod(SHAPES[name][1:])).numpy().T, 3)
        for step in range(6):
            given = [gradients(rank, step)[name].reshape(rows, -1).double().numpy() for rank in range(3)]
            mask = masks(step - step % 3).get(name, torch.ones(SHAPES[name], dtype=torch.bool)) if masked else None
            flags = np.ones_like(given[0], dtype=bool) if mask is None else mask.reshape(rows, -1).numpy()
            expected = reference.step(given, flags)
            mean = ranks[0][0][step][name].reshape(rows, -1).double().numpy()
            assert np.linalg.norm(mean - expected) < 1e-5 * np.linalg.norm(expected)
            assert not mean[~flags].any()
        for rank in range(3):
            kept = ranks[rank][1][name].reshape(rows, -1).double().numpy()
            assert np.linalg.norm(kept - reference.residuals[rank]) < 1e-5 * np.linalg.norm(kept)


def test_a_mean_of_low_rank_arrives_whole_at_once():
    def body(world: World) -> torch.Tensor:
        draw = torch.Generator().manual_seed(world.rank)
        thin = torch.randn(60, 1, generator=draw) @ torch.randn(1, 80, generator=draw)
        exchange = made(world, {"w": (60, 80)}, rank=3)
        mean = copied(exchange.aggregate({"w": thin}))["w"]
        assert exchange.stats.sent == 3 * (60 + 80)
        return torch.stack([thin, mean])

    ranks = Simulation(3).run(body)
    expected = torch.stack([thin for thin, _ in ranks]).mean(0)
    assert (ranks[0][1] - expected).norm() < 1e-5 * expected.norm()


def test_what_ranks_disagree_on_does_not_pile_up():
    """Against the mean's product it would: one unit a step, 120 in the end."""
    apart = torch.randn(24, 40, generator=torch.Generator().manual_seed(9))

    def body(world: World) -> float:
        exchange = made(world, {"w": (24, 40)})
        for step in range(120):
            shared = gradients(0, step, {"w": (24, 40)})["w"]
            exchange.aggregate({"w": shared + (apart if world.rank else -apart)})
        return float(exchange.state()["residual/w"].norm() / apart.norm())

    assert max(Simulation(2).run(body)) < 40


def test_a_matrix_that_was_zero_comes_back():
    exchange = made(World(), {"w": (24, 40)}, rank=1)
    for _ in range(2):
        assert not copied(exchange.aggregate({"w": torch.zeros(24, 40)}))["w"].any()
    gradient = torch.zeros(24, 40)
    gradient[20:, 30:] = 1.0  # away from the first rows, which QR of a zero matrix would look at
    assert torch.allclose(copied(exchange.aggregate({"w": gradient}))["w"], gradient, atol=1e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_not_finite_skips_everywhere_also_where_the_warm_start_is_zero(broken, masked):
    def body(world: World) -> None:
        exchange = made(world)
        if masked:
            exchange.set_masks({"a": torch.ones(24, 40, dtype=torch.bool).index_fill_(0, torch.tensor([5]), False)}, 1)
        for step in range(2):
            quiet = gradients(world.rank, step)
            quiet["a"][:, 3] = 0.0
            exchange.aggregate(quiet)
        before = exchange.state()
        assert not before["factor/a"][:, 3].any()
        for name, at in (("a", (0, 3)), ("tight", (1, 1)), ("bias", (3,))):
            bad = gradients(world.rank, 2)
            if world.rank == 1:
                bad[name][at] = broken
            assert exchange.aggregate(bad) is None and exchange.stats.skipped
            after = exchange.state()
            assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        if masked:  # outside the update set nothing matters
            bad = gradients(world.rank, 2)
            bad["a"][5, 0] = broken
            assert exchange.aggregate(bad) is not None

    Simulation(3).run(body)


def repeated(world: World) -> list[list[dict[str, torch.Tensor]]]:
    return [history(world, 5, masked, overlap=overlap) for masked in (False, True) for overlap in (True, False)]


@pytest.mark.timeout(120)
@on_real_ranks
def test_all_ranks_hold_the_same_bits_with_and_without_overlap(ranks_of, size):
    real, simulated = ranks_of(size, repeated), Simulation(size).run(repeated)[0]
    for kind, step, name in itertools.product(range(4), range(5), SHAPES):
        mean = real[0][kind][step][name]
        assert all(torch.equal(mean, rank[kind][step][name]) for rank in real[1:])
        assert torch.equal(mean, real[0][kind - kind % 2][step][name])
        expected = simulated[kind][step][name]
        assert (mean - expected).norm() <= 1e-4 * expected.norm()


def test_it_resumes_bit_for_bit_also_across_a_change_of_masks():
    def body(world: World) -> None:
        one, two = made(world), made(world)
        for step in range(8):
            if step in (0, 4):
                one.set_masks(masks(step), step)
            if step == 5:
                two.set_masks(masks(4), 4)
                two.load_state(one.state())
                two.step = one.step
            mean = copied(one.aggregate(gradients(world.rank, step)))
            if step >= 5:
                again = copied(two.aggregate(gradients(world.rank, step)))
                assert all(torch.equal(mean[name], again[name]) for name in SHAPES)
        kept, other = one.state(), two.state()
        assert {f"factor/{name}" for name in FACTORED} <= kept.keys()
        assert all(torch.equal(kept[key], other[key]) for key in kept)

    Simulation(2).run(body)


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_are_those_of_the_formula(size):
    def body(world: World) -> None:
        exchange = made(world)
        exchange.set_masks(masks(0), 0)
        exchange.aggregate(gradients(world.rank, 0))
        ways = list(zip(exchange.regimes, exchange.channels, strict=True))
        expected = sum(regime.volume(channel, size, 1.0).bytes for regime, channel in ways)
        ring = 2 * (size - 1) / size
        small = 4 * (30 + 24) * ring
        assert world.transport.meter.sent["gradient"] == pytest.approx(expected + small)
        factors = 2 * (24 + 40) * 2 + 2 * (20 + 54)
        assert expected == pytest.approx(4 * ring * (factors + int(masks(0)["tight"].sum())))

    Simulation(size).run(body)
