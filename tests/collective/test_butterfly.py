"""gtopk and recursive_doubling: who meets whom, what is kept and what is handed back, at any number of ranks."""

import pytest
import torch

from sparsetrain import registry
from sparsetrain.collective.butterfly import depth_of, rounds_of, swaps
from sparsetrain.collective.collective import Load
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World

RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 11)


def build(kind: str, name: str):
    cls = registry.load(kind, name)
    return cls(cls.Config())


def codec(indices: str = "int32", values: str = "fp32") -> Codec:
    return Codec(build("index_code", indices), build("value_code", values))


def entries(rank: int, size: int, k: int, even: bool = True, scale: float = 1.0) -> Entries:
    draw = torch.Generator().manual_seed(rank)
    count = k if even else max(0, k - 3 * rank)
    places = torch.randperm(size, generator=draw)[:count].sort().values.int()
    # Thousandths of whole numbers in fp32 would round; whole numbers add up exactly.
    values = torch.randint(-999, 999, (count,), generator=draw).float() * scale
    return Entries(places, values, even=even, asked=k)


def spread(parts, size: int) -> torch.Tensor:
    total = torch.zeros(size, dtype=torch.float64)
    for part in parts:
        at = torch.arange(size) if part.indices is None else part.indices.long()
        total[at] += part.values.double()
    return total


def run(name: str, ranks: int, size: int, k: int, how: Codec, **options) -> list[tuple[torch.Tensor, Outcome, float]]:
    def body(world: World):
        out = torch.full((size,), float("nan"))
        outcome = build("collective", name).exchange(
            entries(world.rank, size, k, **options), Frame(size, 3, 1), how, world, out
        )
        return out, outcome, world.transport.meter.total

    return Simulation(ranks).run(body)


@pytest.mark.parametrize("ranks", RANKS)
def test_partners_agree_on_every_round_and_everyone_meets_everyone(ranks):
    walks = [swaps(rank, ranks) for rank in range(ranks)]
    assert {len(walk) for walk in walks} == {depth_of(ranks)}
    known = [{rank} for rank in range(ranks)]
    sent = 0
    for number in range(len(walks[0])):
        before = [set(each) for each in known]
        for rank, walk in enumerate(walks):
            swap = walk[number]
            sent += swap.sends
            if swap.partner is not None:
                other = walks[swap.partner][number]
                assert other.partner == rank and (other.sends, other.receives) == (swap.receives, swap.sends)
            if swap.receives:
                known[rank] |= before[swap.partner]
    assert all(each == set(range(ranks)) for each in known)
    assert sent / ranks == pytest.approx(rounds_of(ranks))


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["gtopk", "recursive_doubling"])
@pytest.mark.parametrize("ranks", RANKS)
def test_nothing_is_lost_and_all_ranks_hold_the_same_bits(ranks, name, values):
    size, k = 700, 60
    for even in (True, False):
        found = run(name, ranks, size, k, codec("auto" if even else "int32", values), even=even)
        given = sum(spread([entries(rank, size, k, even)], size) for rank in range(ranks))
        mean = found[0][0]
        assert all(torch.equal(mean, out) for out, _, _ in found)
        left = sum(spread(outcome.leftover, size) for _, outcome, _ in found)
        assert torch.allclose(mean.double() * ranks + left, given, atol=2e-3)
        for _, outcome, _ in found:
            assert all(part.indices is None or part.indices.unique().numel() == len(part) for part in outcome.leftover)
        if name == "gtopk":
            assert found[0][1].distinct <= k
        elif values == "fp32":
            assert torch.equal(mean.double() * ranks, given) or torch.allclose(mean.double() * ranks, given)


def test_gtopk_of_two_keeps_the_largest_sums_and_says_whose_arrived():
    found = run("gtopk", 2, 1000, 100, codec())
    total = spread([entries(0, 1000, 100), entries(1, 1000, 100)], 1000)
    kept = torch.nonzero(found[0][0]).flatten()
    assert found[0][1].distinct == 100
    assert total[kept].abs().min() >= total.abs().topk(100).values.min()
    for rank, (_, outcome, _) in enumerate(found):
        own = entries(rank, 1000, 100)
        inside = torch.isin(own.indices.long(), kept) | (own.values == 0)
        assert torch.equal(outcome.arrived | (own.values == 0), inside)


def test_recursive_doubling_goes_dense_where_that_is_shorter():
    size, k, ranks = 1000, 300, 8
    _, outcome, sent = run("recursive_doubling", ranks, size, k, codec())[0]
    assert outcome.distinct == size
    # 300 pairs of 8 bytes, then 510 pairs would be longer than 1000 values: three messages, two of them whole.
    assert sent == pytest.approx(300 * 8 + 2 * 4000, abs=3 * (8 + 36))


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", ["gtopk", "recursive_doubling"])
def test_bytes_follow_the_formula(ranks, name):
    size, k = 50_000, 1000
    found = run(name, ranks, size, k, codec())
    expected = build("collective", name).volume(Load(ranks, size, k, 8, 4)).bytes
    headers = 50 * depth_of(ranks)
    assert expected * 0.98 <= sum(sent for _, _, sent in found) / ranks <= expected * 1.02 + headers


@pytest.mark.parametrize("name", ["gtopk", "recursive_doubling"])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_value_that_is_not_finite_anywhere_is_told_to_all(name, ranks):
    for bad in range(ranks):

        def body(world: World, bad: int = bad):
            own = entries(world.rank, 100, 10)
            if world.rank == bad:
                own = Entries(own.indices, torch.zeros(10), asked=10, finite=False)
            return build("collective", name).exchange(own, Frame(100, 0, 0), codec(), world, torch.empty(100)).finite

        assert Simulation(ranks).run(body) == [False] * ranks
        overflowing = run(name, ranks, 20, 20, codec(), scale=3e35)
        assert len({outcome.finite for _, outcome, _ in overflowing}) == 1
