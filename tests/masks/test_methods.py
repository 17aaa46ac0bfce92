import pytest
import torch

from sparsetrain import registry
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.methods.base import Moment, drop_and_grow


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, "01010110"), (0.25, "11010100"), (0.5, "11001100"), (0.75, "10101100"), (1.0, "10101100")],
)
def test_the_micro_example_of_rigl(fraction, expected):
    weights = torch.tensor([-9.0, 1, 4, -1, 5, 8, -2, 3])
    mask = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    found = drop_and_grow(mask, weights, weights.abs(), fraction, 4)
    assert "".join(str(int(bit)) for bit in found) == expected


@pytest.mark.parametrize("name", registry.names("mask_method"))
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_every_method_keeps_the_count_exact_and_is_deterministic(name, progress):
    cls = registry.load("mask_method", name)
    method = cls(cls.Config())
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).round()
    mask = method.initial(weight, 90, generator_for(0, "w", 0))
    moment = Moment(
        weight=torch.where(mask, weight, 0.0),
        mask=mask,
        gradient=torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).round(),
        count=90,
        progress=progress,
        generator=generator_for(0, "w", 1),
    )
    new = method.update(moment)
    assert new.dtype == torch.bool and int(new.sum()) == 90
    again = method.update(Moment(**{**moment.__dict__, "generator": generator_for(0, "w", 1)}))
    assert torch.equal(new, again)


def test_rigl_grows_where_the_gradient_is_largest_and_says_what_it_needs():
    cls = registry.load("mask_method", "rigl")
    method = cls(cls.Config(drop_fraction=0.5))
    moment = Moment(
        weight=torch.tensor([5.0, 0.1, 0.0, 0.0]),
        mask=torch.tensor([True, True, False, False]),
        gradient=torch.tensor([0.0, 0.0, -1.0, 9.0]),
        count=2,
        progress=0.0,
        generator=generator_for(0, "w", 1),
    )
    assert method.update(moment).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="mean gradient"):
        method.update(Moment(**{**moment.__dict__, "gradient": None}))


def test_an_active_zero_is_not_taken_for_a_pruned_weight():
    cls = registry.load("mask_method", "gmp")
    method = cls(cls.Config())
    mask = torch.tensor([True, True, True, False])
    moment = Moment(
        weight=torch.tensor([0.0, 3.0, 0.0, 0.0]),
        mask=mask,
        gradient=None,
        count=2,
        progress=0.5,
        generator=generator_for(0, "w", 1),
    )
    assert method.update(moment).tolist() == [True, True, False, False]
