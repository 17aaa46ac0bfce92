import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.collective.simulated import Simulation
from sparsetrain.engine.sparse_mean import sparse_mean
from sparsetrain.masks.layout import Layout

LAYOUTS = [Layout((40, 6), 1, 240, 1), Layout((30, 8), 30, 8, 1), Layout((12, 8), 1, 24, 4), Layout((3,), 1, 3, 1)]
SIZES = [math.prod(layout.shape) for layout in LAYOUTS]


def means(ranks: int, values: list, places: list, wanted: list) -> list:
    return Simulation(ranks).run(
        lambda world: sparse_mean(values[world.rank], places[world.rank], wanted, world.transport, "mask")
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 99), st.data())
def test_the_units_with_the_largest_sums_of_proposals_get_whole_means(ranks, seed, data):
    """Whole numbers up to 127, one of them 127 in each block, come through 8 bits unchanged."""
    draw = torch.Generator().manual_seed(seed)
    wanted = [(layout, data.draw(st.integers(0, layout.units))) for layout in LAYOUTS]
    values = [torch.randint(-8, 9, (sum(SIZES),), generator=draw).float() for _ in range(ranks)]
    places = [torch.nonzero(torch.rand(sum(SIZES), generator=draw) < 0.3).flatten() for _ in range(ranks)]
    found = means(ranks, values, places, wanted)
    expected = torch.stack(values).mean(0)
    for at, mean in found:
        assert torch.equal(at, found[0][0]) and torch.equal(mean, found[0][1])
        assert at.unique().numel() == at.numel()
        assert torch.allclose(mean, expected[at], atol=0.2)  # two roundings to 8 / 127
    if ranks == 1:
        return
    sums = torch.zeros(sum(SIZES))
    for value, place in zip(values, places, strict=True):
        sums[place] += value[place]
    chosen = torch.zeros(sum(SIZES), dtype=torch.bool)
    chosen[found[0][0]] = True
    for (layout, quota), part, total in zip(wanted, chosen.split(SIZES), sums.split(SIZES), strict=True):
        shape = (layout.groups, layout.units, layout.size)
        units, score = part.view(shape).all(2), total.view(shape).abs().mean(2)
        assert torch.equal(units, part.view(shape).any(2))
        if layout.groups > 1:
            assert units.sum(1).tolist() == [quota] * layout.groups
        else:
            assert quota <= int(units.sum()) <= quota + 2 * ranks
        for row, scores in zip(units, score, strict=True):
            owners = [slice(None)] if layout.groups > 1 else [slice(rank, None, ranks) for rank in range(ranks)]
            for own in owners:
                inside, outside = scores[own][row[own]], scores[own][~row[own]]
                assert not len(inside) or not len(outside) or inside.min() >= outside.max() - 0.1


@pytest.mark.parametrize("broken", [0, 2])
def test_means_are_not_numbers_where_one_rank_has_none_also_where_it_did_not_propose_it(broken):
    values = [torch.ones(sum(SIZES)) for _ in range(3)]
    values[broken][5] = math.inf
    for at, mean in means(3, values, [torch.arange(3)] * 3, [(layout, 1) for layout in LAYOUTS]):
        assert at.numel() and torch.isnan(mean).all()


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bytes_are_those_of_the_formula_booked_under_their_kind_whatever_the_number_of_ranks(ranks):
    size, proposals, asked = 100_000, 8000, 1000

    def body(world):
        values = torch.randn(size, generator=torch.Generator().manual_seed(world.rank))
        places = values.abs().topk(proposals).indices.sort().values
        sparse_mean(values, places, [(Layout((size,), 1, size, 1), asked)], world.transport, "mask")
        return dict(world.transport.meter.sent)

    for sent in Simulation(ranks).run(body):
        assert sent["gradient"] == sent["control"] == 0
        # Elias-Fano takes about log2(size / count) + 2 bits a place, the values 8 bits each.
        places = [count * (math.log2(size / count) + 2) / 8 for count in (proposals, asked)]
        expected = (places[0] + proposals + places[1] + 2 * asked) * (ranks - 1) / ranks
        assert sent["mask"] == pytest.approx(expected, rel=0.15)
