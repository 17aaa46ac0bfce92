import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.collective.simulated import Simulation
from sparsetrain.engine.sparse_mean import sparse_mean


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 300), st.integers(0, 99), st.data())
def test_the_union_holds_the_means_and_all_ranks_the_same_bits(ranks, size, seed, data):
    count = data.draw(st.integers(1, size))
    draw = torch.Generator().manual_seed(seed)
    values = [torch.randint(-8, 9, (size,), generator=draw).float() for _ in range(ranks)]
    places = [torch.randperm(size, generator=draw)[:count].sort().values for _ in range(ranks)]
    found = Simulation(ranks).run(
        lambda world: sparse_mean(values[world.rank], places[world.rank], world.transport, "mask")
    )
    union = torch.cat(places).unique()
    for own_union, means in found:
        assert torch.equal(own_union, union) and torch.equal(means, found[0][1])
        expected = torch.stack(values).mean(0)[union]
        assert torch.allclose(means, expected, rtol=2**-8, atol=0)


def test_bytes_are_booked_as_mask_bytes_and_stay_far_below_a_dense_mean():
    size, count, ranks = 100_000, 1000, 4

    def body(world):
        draw = torch.Generator().manual_seed(world.rank)
        values = torch.randn(size, generator=draw)
        places = values.abs().topk(count).indices.sort().values
        union, _ = sparse_mean(values, places, world.transport, "mask")
        return union.numel(), dict(world.transport.meter.sent)

    for union, sent in Simulation(ranks).run(body):
        assert sent["gradient"] == 0
        values = 2 * union * 2 * (ranks - 1) / ranks
        # Elias-Fano takes about log2(size / count) + 2 bits a place.
        assert values < sent["mask"] < values + 3 * count * 9 / 8 * 1.2
        assert sent["mask"] < 0.1 * 2 * 4 * size * (ranks - 1) / ranks
