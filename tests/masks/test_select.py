import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.masks import select
from sparsetrain.masks.select import best, top


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_top_is_exact_and_breaks_ties_by_index(scores, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    mask = top(torch.tensor(scores, dtype=torch.float32), k, torch.tensor(among))
    allowed = [i for i in range(len(scores)) if among[i]]
    expected = sorted(allowed, key=lambda i: (-scores[i], i))[:k]
    assert torch.nonzero(mask).flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("long", [1, 1000])
def test_nan_and_impossible_counts_are_refused(monkeypatch, long):
    monkeypatch.setattr(select, "LONG", long)
    with pytest.raises(ValueError, match="not a number"):
        top(torch.tensor([1.0, float("nan")]), 1)
    with pytest.raises(ValueError, match="cannot choose 3 of 2"):
        top(torch.ones(2), 3)
    assert top(torch.tensor([1.0, float("nan")]), 1, torch.tensor([True, False])).tolist() == [True, False]


@pytest.mark.parametrize("long", [1, 1000])
def test_large_scores_and_minus_infinity_do_not_let_outsiders_in(monkeypatch, long):
    """Lifting kept scores by a constant loses it beside large scores: places are excluded, never outbid."""
    monkeypatch.setattr(select, "LONG", long)
    scores = torch.tensor([3e38, -float("inf"), 1e-30, 300.0])
    assert top(scores, 2, torch.tensor([False, True, True, False])).tolist() == [False, True, True, False]


def test_each_row_has_its_own_quota():
    chosen = best(torch.tensor([[1.0, 3, 2], [1, 1, 1]]), torch.tensor([1, 2]))
    assert chosen.tolist() == [[False, True, False], [True, True, False]]


@given(
    st.lists(st.sampled_from([-float("inf"), -1.0, 0.0, 0.5, 3e38, float("inf")]), min_size=1, max_size=40), st.data()
)
def test_a_long_row_is_chosen_from_without_sorting_and_alike(scores, data):
    among = data.draw(st.none() | st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, len(scores) if among is None else sum(among)))
    row = torch.tensor([scores], dtype=torch.float64)
    inside = None if among is None else torch.tensor([among])
    found = []
    for long in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(select, "LONG", long)
            found.append(best(row, k, inside))
    assert torch.equal(*found) and int(found[0].sum()) == k
