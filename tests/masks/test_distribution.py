import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.masks.distribution import ER, ERK, Distribution, Uniform
from sparsetrain.masks.ranking import Global

LENET = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}


def resnet50() -> dict[str, tuple[int, ...]]:
    """The prunable tensors of ResNet-50 v1.5, in model order."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    inputs = 64
    for layer, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            shapes[f"{at}.conv1"] = (width, inputs, 1, 1)
            shapes[f"{at}.conv2"] = (width, width, 3, 3)
            shapes[f"{at}.conv3"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{at}.downsample"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    return {**shapes, "fc": (1000, 2048)}


def nothing() -> dict:
    raise AssertionError("shapes alone decide")


def erk() -> ERK:
    return ERK(ERK.Config())


def test_resnet50_has_the_published_number_of_weights():
    assert len(resnet50()) == 54
    assert sum(math.prod(shape) for shape in resnet50().values()) == 25_502_912


@pytest.mark.parametrize(
    ("sparsity", "scale", "dense", "known"),
    [
        (
            0.8,
            99.561667,
            {
                *("layer1.0.conv1", "layer1.0.conv3", "layer1.1.conv3", "layer1.2.conv3", "layer1.1.conv1"),
                *("layer1.2.conv1", "layer1.0.downsample", "layer2.0.conv1"),
            },
            {
                "conv1": 0.857195,
                "layer1.0.conv2": 0.361905,
                "layer2.0.conv2": 0.176901,
                "layer3.0.conv2": 0.087438,
                "layer4.0.conv2": 0.043466,
                "layer4.2.conv3": 0.243260,
                "fc": 0.148176,
            },
        ),
        (0.9, 48.786611, {"layer1.0.conv1"}, {"conv1": 0.420038, "layer4.0.conv2": 0.021299, "fc": 0.072608}),
        (0.95, 24.372126, set(), {"conv1": 0.209837, "layer4.0.conv2": 0.010640, "fc": 0.036273}),
    ],
)
def test_erk_on_resnet50_to_six_digits(sparsity, scale, dense, known):
    densities = erk().densities(resnet50(), sparsity)
    assert densities["fc"] / erk().raw((1000, 2048)) == pytest.approx(scale, abs=5e-7)
    assert {name for name, density in densities.items() if density == 1.0} == dense
    for name, density in known.items():
        assert densities[name] == pytest.approx(density, abs=5e-7), name
    counts = erk().counts(resnet50(), sparsity, nothing)
    assert sum(counts.values()) == round((1 - sparsity) * 25_502_912)


@pytest.mark.parametrize(
    ("sparsity", "known"),
    [
        (0.8, (0.162241, 0.469362, 1.0)),
        (0.9, (0.079568, 0.230189, 1.0)),
        (0.95, (0.038484, 0.111334, 0.918507)),
        (0.98, (0.015394, 0.044534, 0.367403)),
    ],
)
def test_erk_on_lenet(sparsity, known):
    assert tuple(erk().densities(LENET, sparsity).values()) == pytest.approx(known, abs=5e-7)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    st.floats(0.0, 0.99),
    st.sampled_from([Uniform(Uniform.Config()), erk(), ER(ER.Config())]),
)
def test_counts_are_whole_within_the_tensors_and_sum_to_the_budget(shapes, sparsity, distribution):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    counts = distribution.counts(named, sparsity, nothing)
    densities = distribution.densities(named, sparsity)
    assert sum(counts.values()) == round((1 - sparsity) * sum(math.prod(s) for s in shapes))
    for name, shape in named.items():
        assert 0 <= counts[name] <= math.prod(shape)
        assert abs(counts[name] - densities[name] * math.prod(shape)) <= 2 + 1e-6


def test_the_density_over_raw_ratio_is_equal_across_layers_that_are_not_dense():
    """Clipping without spending what is left over would make the whole too sparse (0.1959 instead of 0.2)."""
    densities = erk().densities(resnet50(), 0.8)
    ratios = [d / erk().raw(resnet50()[name]) for name, d in densities.items() if d < 1.0]
    assert max(ratios) == pytest.approx(min(ratios))
    kept = sum(density * math.prod(resnet50()[name]) for name, density in densities.items())
    assert kept / 25_502_912 == pytest.approx(0.2, abs=1e-6)


def flops(name: str) -> float:
    """Operations of a dense tensor of ResNet-50 v1.5 on an image of 224 x 224: two for each use of a weight."""
    places = dict(zip(("conv1", "layer1", "layer2", "layer3", "layer4", "fc"), (112, 56, 28, 14, 7, 1), strict=True))
    side = places[name.split(".")[0]]
    # The 3 x 3 convolution of a first block has the stride; the one before it sees the larger image.
    if name.endswith(".0.conv1") and name != "layer1.0.conv1":
        side *= 2
    return 2.0 * math.prod(resnet50()[name]) * side**2


def dense_first(distribution: Distribution, sparsity: float) -> dict[str, float]:
    """Densities where the first convolution is excluded."""
    rest = {name: shape for name, shape in resnet50().items() if name != "conv1"}
    return {"conv1": 1.0, **distribution.densities(rest, sparsity)}


def test_a_dense_resnet50_takes_its_published_operations():
    assert sum(map(flops, resnet50())) == pytest.approx(8.178e9, abs=5e5)


@pytest.mark.parametrize(
    ("densities", "fraction"),
    [
        (erk().densities(resnet50(), 0.8), 0.4138),
        (erk().densities(resnet50(), 0.9), 0.2418),
        (erk().densities(resnet50(), 0.95), 0.1217),
        (dense_first(erk(), 0.99), 0.0520),
        (dense_first(Uniform(Uniform.Config()), 0.8), 0.2231),
        (dense_first(Uniform(Uniform.Config()), 0.9), 0.1260),
        (dense_first(Uniform(Uniform.Config()), 0.95), 0.0774),
    ],
    ids=["erk 0.8", "erk 0.9", "erk 0.95", "erk 0.99", "uniform 0.8", "uniform 0.9", "uniform 0.95"],
)
def test_the_published_share_of_resnet50s_operations_is_left(densities, fraction):
    total = sum(map(flops, resnet50()))
    assert sum(density * flops(name) for name, density in densities.items()) / total == pytest.approx(
        fraction, abs=5e-5
    )


def test_er_does_not_count_kernels():
    shapes = {"conv": (8, 4, 3, 3), "fc": (10, 128)}
    densities = ER(ER.Config()).densities(shapes, 0.9)
    assert densities["conv"] / densities["fc"] == pytest.approx((12 / 32) / (138 / 1280))


@pytest.mark.parametrize(("normalise", "counts"), [(False, {"a": 0, "b": 2}), (True, {"a": 1, "b": 1})])
def test_global_ranks_all_tensors_together(normalise, counts):
    scores = {"a": (torch.tensor([1.0, 0.0]).double(), 1), "b": (torch.tensor([20.0, 10.0]).double(), 1)}
    found = Global(Global.Config(normalise=normalise)).counts({"a": (2,), "b": (2,)}, 0.5, lambda: scores)
    assert found == counts


def test_global_breaks_ties_by_tensor_and_unit_and_never_exceeds_the_budget():
    scores = {"a": (torch.ones(2).double(), 3), "b": (torch.ones(4).double(), 2)}
    found = Global(Global.Config()).counts({"a": (2, 3), "b": (4, 2)}, 0.5, lambda: scores)
    assert found == {"a": 6, "b": 0}
