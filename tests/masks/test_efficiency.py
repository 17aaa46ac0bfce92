import math

import pytest
import torch
from test_distribution import nothing, resnet50

from sparsetrain.masks.distribution import ERK, Uniform
from sparsetrain.masks.efficiency import (
    effective,
    forward_flops,
    lottery_density,
    model_bytes,
    train_flops_ratio,
)
from sparsetrain.masks.maskset import MaskSet


def masks_of(counts: dict[str, int]) -> MaskSet:
    shapes = {name: math.prod(shape) for name, shape in resnet50().items()}
    masks = {name: torch.zeros(size, dtype=torch.bool) for name, size in shapes.items()}
    for name, mask in masks.items():
        mask[: counts[name]] = True
    return MaskSet(masks)


@pytest.mark.parametrize(("sparse", "ratio"), [(0.42, 0.4219), (0.24, 0.2425), (0.12, 0.1229)])
def test_rigls_training_operations(sparse, ratio):
    assert train_flops_ratio(sparse, "mean_gradient", 100) == pytest.approx(ratio, abs=5e-5)


def test_other_sources_of_scores_cost_what_their_passes_cost():
    assert train_flops_ratio(0.25, "replicated") == 0.25
    assert train_flops_ratio(0.1, "straight_through") == pytest.approx(0.7)
    with pytest.raises(ValueError, match="allowed: replicated"):
        train_flops_ratio(0.1, "guess")


@pytest.mark.parametrize(
    ("distribution", "sparsity", "dense", "size"),
    [
        (ERK, 0.8, (), 23.684),
        (ERK, 0.9, (), 13.499),
        (ERK, 0.95, (), 8.399),
        (Uniform, 0.9, ("conv1",), 13.532),
        (Uniform, 0.95, ("conv1",), 8.433),
        (ERK, 0.99, ("conv1",), 4.354),
    ],
)
def test_model_sizes_of_resnet50(distribution, sparsity, dense, size):
    rest = {name: shape for name, shape in resnet50().items() if name not in dense}
    counts = distribution(distribution.Config()).counts(rest, sparsity, nothing)
    counts |= {name: math.prod(resnet50()[name]) for name in dense}
    assert model_bytes(masks_of(counts), 27_560) / 1e6 == pytest.approx(size, abs=5e-4)


def test_a_dense_resnet50_has_its_published_size():
    counts = Uniform(Uniform.Config()).counts(resnet50(), 0.0, nothing)
    assert model_bytes(masks_of(counts), 27_560) / 1e6 == pytest.approx(102.122, abs=5e-4)


def test_operations_count_how_often_weights_are_used():
    masks = MaskSet({"conv": torch.tensor([[True, False]]), "fc": torch.tensor([[True, True, False]])})
    assert forward_flops(masks, {"conv": 10}) == (2 * 10 + 2 * 2, 2 * 2 * 10 + 2 * 3)


def test_weights_on_dead_paths_do_not_count():
    # Hidden neuron 1 has no input, neuron 2 no output: three of five weights are left.
    first = torch.tensor([[True, True], [False, False], [True, False]])
    second = torch.tensor([[True, True, False]])
    found = effective([first, second])
    assert found[0].tolist() == [[True, True], [False, False], [False, False]]
    assert found[1].tolist() == [[True, False, False]]
    with pytest.raises(ValueError, match="3 outputs meet 2 inputs"):
        effective([first, torch.ones(1, 2, dtype=torch.bool)])


@pytest.mark.parametrize(("rounds", "density"), [(5, 0.3277), (10, 0.1074), (11, 0.0859), (20, 0.0115)])
def test_densities_of_the_lottery(rounds, density):
    assert lottery_density(rounds) == pytest.approx(density, abs=5e-5)
