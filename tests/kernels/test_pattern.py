import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.kernels.pattern import SEGMENT, Pattern


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 3 * SEGMENT), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 2**31))
def test_a_pattern_is_its_mask(rows, width, density, seed):
    mask = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < density
    pattern = Pattern.of(mask)
    assert torch.equal(pattern.dense(torch.ones(pattern.count)).bool(), mask)
    assert torch.equal(pattern.places, torch.nonzero(mask.flatten()).flatten())
    turned, order = pattern.turned
    values = torch.arange(pattern.count)
    assert torch.equal(turned.dense(values[order]), pattern.dense(values).t())
    for part in (pattern, turned):
        edges = [*range(0, part.width, SEGMENT), part.width]
        for row in range(part.rows):
            own = part.columns[part.starts[row] : part.starts[row + 1]]
            assert (part.segments[:, row] - part.starts[row]).tolist() == [int((own < edge).sum()) for edge in edges]


def test_axes_behind_the_first_are_columns():
    mask = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(Pattern.of(mask).places, Pattern.of(mask.view(4, 12)).places)


@pytest.mark.parametrize("mask", [torch.ones(3, dtype=torch.bool), torch.ones(2, 2)])
def test_what_is_no_mask_of_a_matrix_is_refused(mask):
    with pytest.raises(ValueError, match="a mask is bool with two axes or more"):
        Pattern.of(mask)
