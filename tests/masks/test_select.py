import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.select import random, top


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_top_is_exact_and_breaks_ties_by_index(scores, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    mask = top(torch.tensor(scores, dtype=torch.float32), k, torch.tensor(among))
    allowed = [i for i in range(len(scores)) if among[i]]
    expected = sorted(allowed, key=lambda i: (-scores[i], i))[:k]
    assert torch.nonzero(mask).flatten().tolist() == sorted(expected)


def test_nan_and_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="not a number"):
        top(torch.tensor([1.0, float("nan")]), 1)
    with pytest.raises(ValueError, match="cannot choose 3 of 2"):
        top(torch.ones(2), 3)
    assert top(torch.tensor([1.0, float("nan")]), 1, torch.tensor([True, False])).tolist() == [True, False]


def test_random_is_exact_and_depends_on_seed_name_and_epoch_alone():
    def draw(seed: int, name: str, epoch: int) -> torch.Tensor:
        return random(torch.Size((20, 30)), 60, generator_for(seed, name, epoch))

    assert int(draw(0, "w", 1).sum()) == 60
    assert torch.equal(draw(0, "w", 1), draw(0, "w", 1))
    for other in (draw(1, "w", 1), draw(0, "v", 1), draw(0, "w", 2)):
        assert not torch.equal(draw(0, "w", 1), other)
