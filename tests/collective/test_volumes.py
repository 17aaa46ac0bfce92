"""What each collective puts on the wire against its formula, and how that grows with the number of ranks."""

import pytest
import torch

from sparsetrain import registry
from sparsetrain.collective.collective import Load
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import HEADER, Codec, Frame
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World

SIZE, K = 200_000, 4000


def build(kind: str, name: str, **options):
    cls = registry.load(kind, name)
    return cls(cls.Config(**options))


def sent(ranks: int, name: str, shared: bool = False) -> tuple[list[float], float]:
    """Return the bytes that each rank sent in the last of three exchanges, and the number of places in the mean."""
    codec = Codec(build("index_code", "int32"), build("value_code", "fp32"))

    def body(world: World) -> tuple[float, int]:
        collective = build("collective", name)
        draw = torch.Generator().manual_seed(0 if shared else world.rank)
        out = torch.empty(SIZE)
        for _ in range(3):
            places = torch.randperm(SIZE, generator=draw)[:K].sort().values.int()
            values = torch.randn(K, generator=draw)
            before = world.transport.meter.total
            outcome = collective.exchange(
                Entries(places, values, shared, asked=K), Frame(SIZE, 0, 0), codec, world, out
            )
        return world.transport.meter.total - before, outcome.distinct

    results = Simulation(ranks).run(body)
    return [each[0] for each in results], results[0][1]


@pytest.mark.parametrize(("name", "shared"), [("allgather", False), ("packed", True), ("split_reduce", False)])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bytes_follow_the_formula(name, shared, ranks):
    load = Load(ranks, SIZE, K, 8, 4)
    expected = build("collective", name).volume(load).bytes
    found, _ = sent(ranks, name, shared)
    headers = 4 * (ranks - 1) * (HEADER.size + 8)
    assert expected * 0.98 <= sum(found) / ranks <= expected * 1.02 + headers


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ok_topk_stays_under_its_bound_and_flat_while_allgather_grows():
    per_rank = {}
    for ranks in (2, 8, 64):
        found, distinct = sent(ranks, "ok_topk")
        words = (sum(found) / ranks - 2 * (ranks - 1) * (HEADER.size + 8)) / 4
        realised = max(K, distinct)
        assert words <= 6 * realised * (ranks - 1) / ranks
        per_rank[ranks] = words
    # The factor (P-1)/P alone takes it from 1/2 to 1.
    assert per_rank[64] <= 1.3 * per_rank[8]
    assert sum(sent(8, "allgather")[0]) / sum(sent(2, "allgather")[0]) == pytest.approx(8 * 7 / 2, rel=0.05)


def test_ok_topk_keeps_the_largest_sums_and_hands_back_what_lost():
    codec = Codec(build("index_code", "auto"), build("value_code", "fp32"))

    def body(world: World):
        draw = torch.Generator().manual_seed(world.rank)
        places = torch.randperm(1000, generator=draw)[:100].sort().values.int()
        values = torch.randn(100, generator=draw)
        out = torch.empty(1000)
        outcome = build("collective", "ok_topk").exchange(
            Entries(places, values, asked=100), Frame(1000, 0, 0), codec, world, out
        )
        dense = torch.zeros(1000).index_add_(0, places, values)
        return dense, out, outcome

    ranks = Simulation(4).run(body)
    total = sum(dense for dense, _, _ in ranks)
    kept = total.abs().topk(100).indices.sort().values
    assert torch.equal(torch.nonzero(ranks[0][1]).flatten(), kept)
    assert torch.allclose(ranks[0][1][kept] * 4, total[kept], atol=1e-6)
    for dense, _, outcome in ranks:
        left = torch.zeros(1000)
        for part in outcome.leftover:
            left.index_add_(0, part.indices, part.values)
        lost = torch.ones(1000, dtype=torch.bool)
        lost[kept] = False
        assert torch.equal(left[lost], dense[lost])
