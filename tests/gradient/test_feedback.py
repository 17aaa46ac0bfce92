"""Each error feedback against a few lines of plain arithmetic from its paper."""

import pytest
import torch

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import GradientExchange

SHAPES = {"w": (20, 30), "bias": (20,)}


def config(**options) -> Exchange:
    return adapter(Exchange).validate_python({"density": 0.05, "values": "fp32", "dense_below": 30, **options})


def gradients(rank: int, step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def run(ranks: int = 2, **options) -> list[dict[str, torch.Tensor]]:
    def body(world: World):
        exchange = GradientExchange(config(**options), SHAPES, world, 6)
        found = []
        for step in range(6):
            mean = exchange.aggregate(gradients(world.rank, step))
            found.append({name: part.clone() for name, part in mean.items()})
        return found

    return Simulation(ranks).run(body)[0]


def top(x: torch.Tensor, k: int) -> torch.Tensor:
    kept = torch.zeros_like(x)
    places = x.abs().topk(k).indices
    kept[places] = x[places]
    return kept


def flat(rank: int, step: int) -> torch.Tensor:
    return gradients(rank, step)["w"].reshape(-1)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_ef14(decay):
    residuals = [torch.zeros(600), torch.zeros(600)]
    for step, found in enumerate(run(error_feedback={"name": "ef14", "decay": decay})):
        accs = [decay * r + flat(rank, step) for rank, r in enumerate(residuals)]
        sent = [top(acc, 30) for acc in accs]
        residuals = [acc - s for acc, s in zip(accs, sent, strict=True)]
        assert torch.allclose(found["w"].reshape(-1), sum(sent) / 2, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
def test_dgc(nesterov, masking):
    m = 0.8
    u, v, b = [torch.zeros(600)] * 2, [torch.zeros(600)] * 2, torch.zeros(20)
    options = {"name": "dgc", "momentum": m, "nesterov": nesterov, "masking": masking}
    for step, found in enumerate(run(error_feedback=options)):
        sent = []
        for rank in range(2):
            g = flat(rank, step)
            u[rank] = m * (u[rank] + g) if nesterov else m * u[rank] + g
            v[rank] = v[rank] + u[rank] + (g if nesterov else 0)
            sent.append(top(v[rank], 30))
            keep = (sent[-1] == 0).float()
            v[rank] = v[rank] * keep
            u[rank] = u[rank] * keep if masking else u[rank]
        assert torch.allclose(found["w"].reshape(-1), sum(sent) / 2, atol=1e-5)
        mean = (gradients(0, step)["bias"] + gradients(1, step)["bias"]) / 2
        b = m * b + mean
        assert torch.allclose(found["bias"], mean + m * b if nesterov else b, atol=1e-5)


@pytest.mark.parametrize("eta", [None, 0.3])
def test_ef21_and_its_momentum(eta):
    h_i, v = [torch.zeros(600)] * 2, [torch.zeros(600)] * 2
    options = {"name": "ef21"} if eta is None else {"name": "ef21_sgdm", "eta": eta}
    for step, found in enumerate(run(error_feedback=options)):
        for rank in range(2):
            v[rank] = flat(rank, step) if eta is None else (1 - eta) * v[rank] + eta * flat(rank, step)
            h_i[rank] = h_i[rank] + top(v[rank] - h_i[rank], 30)
        assert torch.allclose(found["w"].reshape(-1), sum(h_i) / 2, atol=1e-5)


def test_dgc_clips_each_rank_before_it_accumulates():
    limit = 0.5
    found = run(error_feedback={"name": "dgc", "momentum": 0.0, "clip": limit}, density=1.0)[0]
    expected = torch.zeros(20, 30)
    for rank in range(2):
        given = gradients(rank, 0)
        norm = torch.cat([g.reshape(-1) for g in given.values()]).norm()
        expected += given["w"] * (limit / 2**0.5) / norm / 2
    assert torch.allclose(found["w"], expected, atol=1e-6)


@pytest.mark.parametrize(("residual", "error"), [("bf16", 0.02), ("int8", 0.05)])
@pytest.mark.parametrize("feedback", ["ef14", "dgc"])
def test_short_storage_stays_near_fp32(residual, error, feedback):
    full, short = run(error_feedback=feedback), run(error_feedback=feedback, residual=residual)
    for a, b in zip(full, short, strict=True):
        both = (a["w"] != 0) & (b["w"] != 0)
        assert both.sum() > 0.5 * (a["w"] != 0).sum()
        # A near tie may send another place; what both send differs by the rounding alone.
        assert ((a["w"] - b["w"])[both] / a["w"][both]).abs().median() <= error


@pytest.mark.parametrize("residual", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("feedback", ["ef14", "dgc", "ef21", "ef21_sgdm"])
def test_saved_state_continues_bit_for_bit(feedback, residual):
    if feedback.startswith("ef21"):
        residual = "fp32"

    def body(world: World) -> None:
        options = {"error_feedback": feedback, "residual": residual, "collective": "ok_topk"}
        one, two = (GradientExchange(config(**options), SHAPES, world, 8) for _ in range(2))
        for step in range(3):
            one.aggregate(gradients(world.rank, step))
        two.load_state(one.state())
        two.step = one.step
        for step in range(3, 6):
            a, b = (x.aggregate(gradients(world.rank, step)) for x in (one, two))
            assert all(torch.equal(a[name], b[name]) for name in SHAPES)

    Simulation(2).run(body)


@pytest.mark.parametrize("feedback", ["none", "ef14", "dgc"])
def test_buckets_that_leave_during_backward_change_nothing(feedback):
    options = {"error_feedback": feedback, "bucket_elements": 1, "dense_below": 0}
    shapes = {"a": (10, 20), "b": (20, 30), "c": (5, 9), "bias": (20,)}

    def body(world: World, streamed: bool):
        exchange = GradientExchange(config(**options), shapes, world, 4)
        found = []
        for step in range(4):
            draw = torch.Generator().manual_seed(10 * step + world.rank)
            given = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
            # Ranks finish their gradients in different orders; one stays away.
            for name in (["c", "a", "bias", "b"] if world.rank else ["b", "c", "bias"]) if streamed else []:
                exchange.offer(name, given[name])
            found.append({name: mean.clone() for name, mean in exchange.aggregate(given).items()})
        exchange.close()
        return found

    whole, parts = (Simulation(2).run(lambda world, s=s: body(world, s)) for s in (False, True))
    for a, b in zip(whole[0], parts[1], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in shapes)
