"""Transposable n:m: as many weights in each row as in each column, and none with a higher sum of scores."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.masks.methods.regrower import drop_and_grow
from sparsetrain.masks.structures.nm import NM
from sparsetrain.masks.tiles import Tiles, _all_masks, regular


def layout(shape: tuple[int, ...], n: int, m: int) -> Tiles:
    config = adapter(NM.Config).validate_python({"n": n, "m": m, "transposable": True})
    found = NM(config).layout("w", shape)
    assert isinstance(found, Tiles)
    return found


def every_mask(n: int, m: int) -> torch.Tensor:
    """Return all m x m masks with n in each row and column, row by row: the oracle."""
    rows = [torch.tensor([place in chosen for place in range(m)]) for chosen in itertools.combinations(range(m), n)]
    part = torch.zeros(1, 0, m, dtype=torch.bool)
    for _ in range(m):
        part = torch.cat([torch.cat([part, row.expand(len(part), 1, m)], 1) for row in rows])
        part = part[(part.sum(1) <= n).all(1)]
    return part[(part.sum(1) == n).all(1)]


def tiles_of(mask: torch.Tensor, m: int) -> torch.Tensor:
    return mask.unfold(0, m, m).unfold(1, m, m).reshape(-1, m, m)


def is_regular(tiles: torch.Tensor, n: int) -> bool:
    return bool((tiles.sum(1) == n).all() and (tiles.sum(2) == n).all())


def test_there_are_exactly_ninety_masks_of_two_in_four():
    rows, masks = _all_masks(4, 2)
    found = torch.zeros(len(masks), 4, 4, dtype=torch.bool).scatter_(2, rows[masks], True)
    assert len(torch.unique(found, dim=0)) == len(found) == 90 and is_regular(found, 2)


@pytest.mark.parametrize(("n", "m", "count"), [(1, 4, 24), (2, 4, 90), (3, 4, 24), (2, 5, 2040), (2, 6, 67950)])
def test_the_choice_has_the_highest_sum_of_all_masks(n, m, count):
    masks = every_mask(n, m)
    assert len(masks) == count  # numbers of n-regular 0-1 matrices (OEIS A001499 for n = 2)
    scores = torch.randn(12, m, m, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    found = regular(scores, n, torch.zeros_like(scores, dtype=torch.bool))
    assert is_regular(found, n)
    sums = scores.flatten(1) @ masks.flatten(1).double().T
    assert torch.allclose((scores * found).sum((1, 2)), sums.max(1).values, atol=1e-9)


def test_prices_prove_that_no_mask_of_a_larger_tile_has_a_higher_sum():
    scores = torch.randn(40, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = regular(scores, 8, torch.zeros_like(scores, dtype=torch.bool))
    assert is_regular(found, 8)
    # Duality: with prices of columns, no row would rather have a place that it has not.
    for tile, mask in zip(scores, found, strict=True):
        prices = torch.zeros(16, dtype=torch.float64)
        for _ in range(40):
            cost = torch.where(mask.unsqueeze(2) & ~mask.unsqueeze(1), tile.unsqueeze(2) - tile.unsqueeze(1), torch.inf)
            prices = torch.minimum(prices, (prices.unsqueeze(1) + cost.amin(0)).amin(0))
        net = tile + prices
        worst = torch.where(mask, net, torch.inf).amin(1)
        best = torch.where(mask, -torch.inf, net).amax(1)
        assert torch.all(worst >= best - 1e-9)


@pytest.mark.parametrize("m", [4, 8])
def test_equal_scores_give_one_answer_wherever_the_tile_lies(m):
    ties = torch.ones(5, m, m)
    none = torch.zeros_like(ties, dtype=torch.bool)
    found = regular(ties, m // 2, none)
    assert is_regular(found, m // 2) and torch.equal(found, found[:1].expand_as(found))
    if m == 4:
        assert found[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(2, 4), (1, 4), (3, 4), (2, 8), (3, 5)]), st.sampled_from([(), (3, 3)]))
def test_every_tile_of_a_tensor_keeps_n_in_each_row_and_column(seed, sides, kernel):
    n, m = sides
    draw = torch.Generator().manual_seed(seed)
    shape = (2 * m, 3 * m, *kernel)
    found = layout(shape, n, m)
    count = found.whole(round(n / m * torch.Size(shape).numel()))
    for mask in (found.top(torch.randint(0, 4, shape, generator=draw).float(), count), found.random(count, draw)):
        for pixel in mask.flatten(2).unbind(2) if kernel else [mask]:
            assert is_regular(tiles_of(pixel, m), n)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.floats(0, 1))
def test_what_drops_and_grows_stays_transposable_at_any_density(seed, m, fraction):
    draw = torch.Generator().manual_seed(seed)
    shape = (2 * m, 2 * m)
    found = layout(shape, 2, m)
    size = torch.Size(shape).numel()
    mask = found.random(size // 2, draw)
    for n in (m // 2, m - 1, m // 4):
        keep, grow = (torch.randint(0, 5, shape, generator=draw).float() for _ in range(2))
        new = drop_and_grow(found, mask, keep, grow, fraction, n * size // m)
        assert is_regular(tiles_of(new, m), n)
        if n == m // 2:
            assert int((mask & new).sum()) >= int(mask.sum()) - int(fraction * int(mask.sum()))
        mask = found.top(keep, n * size // m)


def test_a_choice_among_few_stays_among_them_and_says_when_it_cannot():
    found = layout((4, 4), 2, 4)
    among = torch.ones(4, 4, dtype=torch.bool)
    among[0, :1], among[1, 3] = False, False
    scores = torch.where(among, 1.0, torch.nan)
    assert not bool((found.top(scores, 8, among) & ~among).any())
    among[0, :3] = False
    with pytest.raises(ValueError, match="no mask with 2 in each row and column among the candidates"):
        found.top(scores, 8, among)
    with pytest.raises(ValueError, match="not a number"):
        found.top(scores, 8)


@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_shapes_that_are_not_made_of_tiles_are_refused(shape):
    with pytest.raises(JobError, match=r"masks\.structure: w \[\d, \d\] is not made of whole tiles of 4 x 4"):
        layout(shape, 2, 4)
