import numpy as np
import pytest
import torch

from sparsetrain import registry
from sparsetrain.gradient.sparsifiers.base import Ask
from sparsetrain.gradient.sparsifiers.randomk import draw

SIZE = 300_000
NAMES = registry.names("sparsifier")


def build(name: str, **options):
    cls = registry.load("sparsifier", name)
    return cls(cls.Config(**options))


def gradient(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, generator=generator) * torch.exp(torch.randn(SIZE, generator=generator))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, -1.0, 0.9])
def test_what_is_selected_and_what_stays_are_the_compensated_gradient(name, scale):
    old, given = gradient(1), gradient(2)
    buffer = given.clone()
    chosen = build(name).select(old, buffer, Ask(3000, scale, 5, 1))
    expected = given + (old if scale == 1.0 else old * scale)
    places = chosen.indices.long()
    assert torch.all(places[1:] > places[:-1]) and chosen.indices.dtype == torch.int32
    assert torch.equal(chosen.values, expected[places])
    assert torch.all(buffer[places] == 0)
    whole = buffer.clone()
    whole[places] = chosen.values
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if registry.load("sparsifier", name).gathers])
def test_what_gathers_reads_the_parts_and_not_the_buffer(name):
    old, given = gradient(1), gradient(2)
    one, two = given.clone(), torch.full_like(given, float("nan"))
    whole = build(name).select(old, one, Ask(3000))
    parts = build(name).select(old, two, Ask(3000, parts=tuple(given.tensor_split([1000, 70_000]))))
    assert whole.indices is not None and parts.indices is not None
    assert torch.equal(whole.indices, parts.indices) and torch.equal(whole.values, parts.values)
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_said(name, bad):
    buffer = gradient()
    buffer[SIZE - 7] = bad
    assert not build(name).select(None, buffer, Ask(300)).finite


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("randomk",)])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1])
def test_the_count_and_the_energy_are_near_those_of_the_exact_top_k(name, density):
    k = int(density * SIZE)
    for seed in range(5):
        given = gradient(seed)
        exact = given.abs().topk(k).values.square().sum()
        chosen = build(name).select(None, given.clone(), Ask(k, step=seed))
        least, most = {"threshold": (0.8, 1.25), "sampled": (0.8, 1.3)}.get(name, (1, 1))
        assert least * k <= len(chosen) <= most * k + 1
        assert chosen.values.square().sum() >= 0.7 * exact


def test_small_blocks_lose_energy_where_the_large_values_sit_together():
    given = gradient()
    given[: SIZE // 10] *= 20
    small, large = (
        build("block_topk", block=block).select(None, given.clone(), Ask(3000)).values.square().sum()
        for block in (512, 1 << 20)
    )
    assert small < 0.7 * large


def test_random_places_are_uniform_without_replacement_and_shared():
    counts = np.zeros(50)
    for step in range(4000):
        places = draw(50, 10, f"0/{step}/0")
        assert len(set(places.tolist())) == 10
        counts[places] += 1
    assert np.all(np.abs(counts - 800) < 5 * np.sqrt(800 * 0.8))
    assert np.array_equal(draw(10**6, 1000, "a"), draw(10**6, 1000, "a"))
    assert not np.array_equal(draw(10**6, 1000, "a"), draw(10**6, 1000, "b"))
    assert np.array_equal(draw(70, 70, "a"), np.arange(70)) and draw(70, 60, "a").size == 60
