import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.masks.distribution import ERK, Uniform

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


def erk() -> ERK:
    return ERK(ERK.Config())


def test_resnet50_has_the_published_number_of_weights():
    assert len(resnet50()) == 54
    assert sum(math.prod(shape) for shape in resnet50().values()) == 25_502_912


@pytest.mark.parametrize(
    ("sparsity", "dense", "known"),
    [
        (
            0.8,
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
        (0.9, {"layer1.0.conv1"}, {"conv1": 0.420038, "layer4.0.conv2": 0.021299, "fc": 0.072608}),
        (0.95, set(), {"conv1": 0.209837, "layer4.0.conv2": 0.010640, "fc": 0.036273}),
    ],
)
def test_erk_on_resnet50_to_six_digits(sparsity, dense, known):
    densities = erk().densities(resnet50(), sparsity)
    assert {name for name, density in densities.items() if density == 1.0} == dense
    for name, density in known.items():
        assert densities[name] == pytest.approx(density, abs=5e-7), name
    counts = erk().counts(resnet50(), sparsity)
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
    st.sampled_from([Uniform(Uniform.Config()), erk()]),
)
def test_counts_are_whole_within_the_tensors_and_sum_to_the_budget(shapes, sparsity, distribution):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    counts = distribution.counts(named, sparsity)
    densities = distribution.densities(named, sparsity)
    assert sum(counts.values()) == round((1 - sparsity) * sum(math.prod(s) for s in shapes))
    for name, shape in named.items():
        assert 0 <= counts[name] <= math.prod(shape)
        assert abs(counts[name] - densities[name] * math.prod(shape)) <= 2 + 1e-6
