import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import gloo_ranks

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import GradientExchange

SHAPES = {"a.weight": (40, 30), "a.bias": (40,), "b.weight": (20, 40), "b.bias": (20,), "c.weight": (3, 20)}


def exchange_config(**options) -> Exchange:
    return adapter(Exchange).validate_python({"dense_below": 100, "bucket_elements": 1500, **options})


def gradients(rank: int, step: int, integer: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    draws = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: (4 * draw).round() if integer else draw for name, draw in draws.items()}


def masks(epoch: int, density: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return {
        name: torch.rand(SHAPES[name], generator=generator) < density for name in ("a.weight", "b.weight", "b.bias")
    }


def run(world: World, options: dict, steps: int = 4, masked: bool = False, integer: bool = False) -> list[dict]:
    """Aggregate `steps` times and return per step what went in, what came out, and the residuals in full shape."""
    exchange = GradientExchange(exchange_config(**options), SHAPES, world, steps)
    history = []
    for step in range(steps):
        if masked and step % 2 == 0:
            exchange.set_masks(masks(step), step)
        before = full(exchange)
        given_in = gradients(world.rank, step, integer)
        means = {name: mean.clone() for name, mean in exchange.aggregate(given_in).items()}
        history.append({"in": given_in, "mean": means, "before": before, "after": full(exchange)})
    return history


def full(exchange: GradientExchange) -> dict[str, torch.Tensor]:
    parts = {name: part.clone() for name, part in exchange.small.bucket.split(exchange.small.rest).items()}
    for channel in exchange.channels:
        parts |= {name: part.clone() for name, part in channel.bucket.split(channel.dense("residual")).items()}
    return parts


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("values", ["fp32", "bf16"])
@pytest.mark.parametrize("regime", ["sparse", "packed", "dense"])
def test_mass_is_conserved_inside_the_mask(size, masked, values, regime):
    options = {"regime": regime, "density": 0.05, "values": values, "warmup": 0.5}
    ranks = Simulation(size).run(lambda world: run(world, options, masked=masked))
    for step in range(4):
        active = masks(step - step % 2) if masked else {}
        for name, shape in SHAPES.items():
            inside = active.get(name, torch.ones(shape, dtype=torch.bool))
            old = sum(r[step]["before"].get(name, torch.zeros(shape)).double() for r in ranks)
            new = sum(r[step]["after"].get(name, torch.zeros(shape)).double() for r in ranks)
            total = sum(torch.where(inside, r[step]["in"][name], 0.0).double() for r in ranks)
            sent = size * ranks[0][step]["mean"][name].double()
            assert torch.allclose(new + sent, old + total, atol=1e-5)
            assert torch.all(sent[~inside] == 0) and torch.all(new[~inside] == 0)


def test_energy_is_the_share_of_the_squared_norm_that_was_sent():
    options = {"regime": "sparse", "density": 0.1, "values": "fp32"}

    def body(world: World) -> tuple[float, float]:
        exchange = GradientExchange(exchange_config(**options), SHAPES, world, 1)
        given_in = gradients(world.rank, 0)
        exchange.aggregate(given_in)
        sent = total = 0.0
        for channel in exchange.channels:
            whole = torch.cat([given_in[name].reshape(-1) for name in channel.bucket.names]).square()
            k = max(1, round(0.1 * whole.numel()))
            sent, total = sent + float(whole.topk(k).values.sum()), total + float(whole.sum())
        return exchange.stats.energy(exchange.residual_norm()), sent / total

    for found, expected in Simulation(2).run(body):
        assert 0.2 < expected < 0.8
        assert found == pytest.approx(expected, rel=1e-4)


def test_no_residual_no_energy():
    options = {"error_feedback": "none", "density": 0.1}

    def body(world: World) -> float:
        exchange = GradientExchange(exchange_config(**options), SHAPES, world, 1)
        exchange.aggregate(gradients(world.rank, 0))
        return exchange.stats.energy(exchange.residual_norm())

    assert all(found != found for found in Simulation(2).run(body))


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_hold_the_same_bits(size):
    ranks = Simulation(size).run(lambda world: run(world, {"density": 0.03}, masked=True))
    for other in ranks[1:]:
        for step in range(4):
            for name in SHAPES:
                assert torch.equal(ranks[0][step]["mean"][name], other[step]["mean"][name])


def final(world: World, options: dict, masked: bool, integer: bool) -> list[dict]:
    return [step["mean"] for step in run(world, options, masked=masked, integer=integer)]


@pytest.mark.timeout(90)
@pytest.mark.parametrize("masked", [False, True])
def test_k_equal_n_is_dense_bit_for_bit_on_two_gloo_ranks(masked):
    everything = {"density": 1.0, "values": "fp32"}
    found = {
        regime: gloo_ranks(
            2, functools.partial(final, options={**everything, "regime": regime}, masked=masked, integer=False)
        )
        for regime in ("dense", "packed", "sparse")
    }
    plain = Simulation(2).run(lambda world: gradients_mean(masked))
    for ranks in found.values():
        for rank in ranks:
            for step in range(4):
                for name in SHAPES:
                    assert torch.equal(rank[step][name], plain[0][step][name])


def gradients_mean(masked: bool) -> list[dict[str, torch.Tensor]]:
    means = []
    for step in range(4):
        active = masks(step - step % 2) if masked else {}
        one, two = gradients(0, step), gradients(1, step)
        mean = {name: (one[name] + two[name]) / 2 for name in SHAPES}
        means.append({name: torch.where(active[name], m, 0.0) if name in active else m for name, m in mean.items()})
    return means


def test_k_equal_n_is_dense_to_rounding_on_four_ranks():
    sparse = Simulation(4).run(lambda world: final(world, {"density": 1.0, "values": "fp32"}, False, False))
    dense = Simulation(4).run(lambda world: final(world, {"regime": "dense", "values": "fp32"}, False, False))
    for step in range(4):
        for name in SHAPES:
            difference = (sparse[0][step][name] - dense[0][step][name]).norm()
            assert difference <= 1e-6 * dense[0][step][name].norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["a.weight", "a.bias"])
def test_a_non_finite_gradient_on_one_rank_skips_all_and_touches_no_residual(bad, where):
    def body(world: World):
        exchange = GradientExchange(exchange_config(density=0.05), SHAPES, world, 4)
        exchange.aggregate(gradients(world.rank, 0))
        before = exchange.state()
        broken = gradients(world.rank, 1)
        if world.rank == 1:
            broken[where].view(-1)[3] = bad
        skipped = exchange.aggregate(broken)
        after = exchange.state()
        assert all(torch.equal(before[name], after[name]) for name in before)
        again = exchange.aggregate(gradients(world.rank, 1))
        return skipped, {name: mean.clone() for name, mean in again.items()}

    undisturbed = Simulation(2).run(lambda world: final(world, {"density": 0.05}, False, False))
    for skipped, again in Simulation(2).run(body):
        assert skipped is None
        assert all(torch.equal(again[name], undisturbed[0][1][name]) for name in SHAPES)


def test_bytes_follow_the_formulas():
    def sent(world: World, options: dict) -> float:
        exchange = GradientExchange(exchange_config(**options), SHAPES, world, 1)
        exchange.set_masks(masks(0), 0)
        exchange.aggregate(gradients(world.rank, 0))
        return world.transport.meter.sent["gradient"]

    size, small = 4, 40 + 20 + 60
    active = [int(mask.sum()) for name, mask in masks(0).items() if name.endswith("weight")]
    peers = size - 1
    ring = 2 * peers / size
    cases = {
        "dense": 4 * (1200 + 800) * ring,
        "packed": 4 * sum(active) * ring,
        "sparse": sum(32 + 6 * round(0.05 * a) for a in active) * peers,
    }
    for regime, expected in cases.items():
        found = Simulation(size).run(
            lambda world, regime=regime: sent(
                world,
                {
                    "regime": regime,
                    "density": 0.05,
                    "indices": "int32",
                    "values": "bf16" if regime == "sparse" else "fp32",
                },
            )
        )
        # Short values go to the owner of a range and come back, each time with a header.
        rest = 2 * peers * (32 + 2 * small / size) if regime == "sparse" else 4 * small * ring
        assert found == [pytest.approx(expected + rest)] * size


def test_residuals_travel_by_name_and_survive_a_round_trip():
    def body(world: World):
        one = GradientExchange(exchange_config(density=0.05), SHAPES, world, 8)
        one.set_masks(masks(0), 0)
        for step in range(3):
            one.aggregate(gradients(world.rank, step))
        two = GradientExchange(exchange_config(density=0.05), SHAPES, world, 8)
        two.set_masks(masks(0), 0)
        two.load_state(one.state())
        two.step = one.step
        a, b = (x.aggregate(gradients(world.rank, 3)) for x in (one, two))
        assert all(torch.equal(a[name], b[name]) for name in SHAPES)
        with pytest.raises(ValueError, match=r"residual of a\.weight"):
            two.load_state({"residual/a.weight": torch.zeros(7)})

    Simulation(2).run(body)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_mask_change_keeps_residuals_of_surviving_coordinates_only(first, second):
    exchange = GradientExchange(exchange_config(density=0.01), SHAPES, World(), 8)
    exchange.set_masks(masks(first), 0)
    exchange.aggregate(gradients(0, 0))
    before = full(exchange)
    exchange.set_masks(masks(second), 1)
    after = full(exchange)
    for name in ("a.weight", "b.weight"):
        survive = masks(first)[name] & masks(second)[name]
        assert torch.equal(after[name], torch.where(survive, before[name], 0.0))


@pytest.mark.parametrize("regime", ["sparse", "packed", "dense"])
@pytest.mark.parametrize("feedback", ["ef14", "dgc", "ef21", "ef21_sgdm", "none"])
def test_a_bucket_that_nothing_is_left_of_has_nothing_to_commit(feedback, regime):
    if feedback != "none" and regime != "sparse":
        pytest.skip("error feedback is that of sparse exchange")

    def body(world: World) -> None:
        config = exchange_config(error_feedback=feedback, regime=regime, values="fp32", density=0.1, bucket_elements=1)
        exchange = GradientExchange(config, SHAPES, world, 8)
        nothing = {"a.weight": torch.zeros(SHAPES["a.weight"], dtype=torch.bool)}
        for step in range(6):
            if step in (2, 4):
                exchange.set_masks(nothing if step == 2 else masks(step), step)
            means = exchange.aggregate(gradients(world.rank, step))
            assert all(bool(torch.isfinite(mean).all()) for mean in means.values())
            assert step not in (2, 3) or not means["a.weight"].any()

    Simulation(2).run(body)


def three_workers(density: float, feedback: str, eta: float = 0.05, steps: int = 400) -> float:
    """Beznosikov et al. (2020): f_i = <a_i, x>^2 + |x|^2 / 4, a_1 = (-3, 2, 2) and its rotations, x0 = (1, 1, 1)."""
    rows = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])
    config = exchange_config(density=density, error_feedback=feedback, values="fp32", dense_below=0)

    def body(world: World) -> float:
        exchange = GradientExchange(config, {"x": (1, 3)}, world, steps)
        x = torch.ones(1, 3)
        for _ in range(steps):
            slope = 2 * rows[world.rank] * (rows[world.rank] @ x[0]) + 0.5 * x[0]
            x = x - eta * exchange.aggregate({"x": slope.view(1, 3)})["x"]
        return float(x[0].norm() / 3**0.5)

    return Simulation(3).run(body)[0]


def test_top_1_without_feedback_diverges_at_the_known_rate_and_converges_with_it():
    steps = 40
    assert three_workers(1 / 3, "none", steps=steps) == pytest.approx((1 + 11 * 0.05 / 6) ** steps, rel=1e-3)
    assert three_workers(1 / 3, "ef14", steps=400) < 1e-6


def test_the_largest_numbers_stay_finite_in_bf16():
    exchange = GradientExchange(exchange_config(density=0.01, values="bf16"), SHAPES, World(), 1)
    huge = {name: torch.full(shape, 3.4e38) for name, shape in SHAPES.items()}
    mean = exchange.aggregate(huge)
    assert mean is not None and all(torch.isfinite(part).all() for part in mean.values())
    assert all(torch.isfinite(part).all() for part in exchange.state().values())


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("regime", ["dense", "packed", "sparse", "lowrank"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step_on_all_ranks(regime, values, broken):
    def body(world: World) -> tuple[bool, bool, dict]:
        exchange = GradientExchange(exchange_config(regime=regime, values=values, density=0.1), SHAPES, world, 2)
        given_in = gradients(world.rank, 0)
        if world.rank == 1:
            given_in["a.weight"][0, 0] = broken
        skipped = exchange.aggregate(given_in) is None
        after = full(exchange)
        return skipped, exchange.stats.skipped, after

    for skipped, counted, residuals in Simulation(2).run(body):
        assert skipped and counted
        assert all(not residual.any() for residual in residuals.values())


@pytest.mark.parametrize("indices", ["auto", "int32", "elias_fano"])
@pytest.mark.parametrize("collective", ["split_reduce", "ok_topk", "allgather"])
def test_a_support_that_moves_leaves_some_owners_without_an_entry(collective, indices):
    def body(world: World) -> list[float]:
        config = exchange_config(density=0.01, collective=collective, indices=indices)
        exchange, total = GradientExchange(config, {"w": (100, 100)}, world, 10), []
        for step in range(6):
            gradient = torch.zeros(100, 100)
            gradient[50 * (step % 2) : 50 * (step % 2) + 50] = 1 + torch.arange(5000).view(50, 100) / 5000
            total.append(float(exchange.aggregate({"w": gradient})["w"].sum()))
        return total

    results = Simulation(4).run(body)
    assert all(result == results[0] for result in results) and all(value > 0 for value in results[0])


def test_a_message_that_shrinks_below_its_header_comes_through():
    def body(world: World) -> float:
        config = exchange_config(density=1e-4, warmup=0.1, values="int4", overlap=False)
        exchange = GradientExchange(config, {"w": (100, 100)}, world, 10)
        total = 0.0
        for _ in range(10):
            gradient = torch.zeros(100, 100)
            gradient.view(-1)[:3000] = torch.arange(3000.0) + 1
            total += float(exchange.aggregate({"w": gradient})["w"].sum())
        return total

    one, two = Simulation(2).run(body)
    assert one == two > 0
