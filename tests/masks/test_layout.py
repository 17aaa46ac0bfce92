import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import prune

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.layout import Layout

OPTIONS = {"block": {"rows": 2, "columns": 4}, "row": {"axis": 1}}
SHAPES = [(8, 12), (4, 8), (8, 4, 3, 3)]


def layout(name: str, shape: tuple[int, ...], **options) -> Layout:
    cls = registry.load("structure", name)
    return cls(adapter(cls.Config).validate_python(options or OPTIONS.get(name, {}))).layout("w", shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", registry.names("structure"))
@given(st.data())
def test_any_structure_chooses_whole_units_exactly_and_equally_many_in_each_group(name, shape, data):
    found = layout(name, shape)
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = torch.randint(0, 3, shape, generator=draw).float()
    count = found.whole(data.draw(st.integers(0, math.prod(shape))))
    for mask in (found.top(scores, count), found.random(count, draw)):
        assert mask.shape == shape and int(mask.sum()) == count
        units = found.active(mask)
        assert torch.equal(found.expand(units), mask)
        assert len(set(units.sum(1).tolist())) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_two_of_four_of_equal_scores_are_exactly_two_along_the_named_axis_only(axis):
    found = layout("n:m", (8, 8), n=2, m=4, axis=axis)
    ties = found.top(torch.ones(8, 8), 32)
    assert torch.all(ties.movedim(axis, -1).reshape(-1, 4).sum(1) == 2)
    draw = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    mask = found.top(draw, 32)
    assert torch.all(mask.movedim(axis, -1).reshape(-1, 4).sum(1) == 2)
    assert not torch.all(mask.movedim(1 - axis, -1).reshape(-1, 4).sum(1) == 2)


def test_one_weight_masks_equal_those_of_torch():
    module = torch.nn.Linear(20, 30)
    expected = prune.l1_unstructured(module, "weight", amount=450).weight_mask.bool()
    weight = module.weight_orig.detach()
    assert torch.equal(layout("unstructured", (30, 20)).top(weight.abs(), 150), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_row_masks_equal_those_of_torch(axis):
    module = torch.nn.Linear(20, 30)
    expected = prune.ln_structured(module, "weight", amount=7, n=1, dim=axis).weight_mask.bool()
    found = layout("row", (30, 20), axis=axis)
    size = 30 if axis else 20
    assert torch.equal(found.top(module.weight_orig.detach().abs(), 600 - 7 * size), expected)


def test_a_block_is_a_rectangle():
    mask = layout("block", (4, 8), rows=2, columns=4).top(torch.arange(32.0).view(4, 8), 8)
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[2:, 4:] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("block", (5, 8), r"masks\.structure: w \[5, 8\] is not made of whole blocks of 2 x 4"),
        ("n:m", (8, 6), r"masks\.structure: w \[8, 6\] has 6 weights along axis 1, not a multiple of 4"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(name, shape, says):
    with pytest.raises(JobError, match=says):
        layout(name, shape)


def test_random_is_exact_and_depends_on_seed_name_and_epoch_alone():
    def draw(seed: int, name: str, epoch: int) -> torch.Tensor:
        return layout("unstructured", (20, 30)).random(60, generator_for(seed, name, epoch))

    assert int(draw(0, "w", 1).sum()) == 60
    assert torch.equal(draw(0, "w", 1), draw(0, "w", 1))
    for other in (draw(1, "w", 1), draw(0, "v", 1), draw(0, "w", 2)):
        assert not torch.equal(draw(0, "w", 1), other)


def test_a_generator_is_the_same_in_every_process():
    """Python's own hash of a name is another one in each process."""
    assert int(torch.randint(2**31, (1,), generator=generator_for(3, "layer.weight", 2))) == 580462490
