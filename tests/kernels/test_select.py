import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving
from selections import KINDS, bits, holds, make, ranked, same

from sparsetrain.kernels import sampling
from sparsetrain.kernels.reference.select import select_device
from sparsetrain.kernels.select import Selection, select


@st.composite
def cases(draw):
    size = draw(st.one_of(st.integers(1, 300), st.integers(1, 300_000)))
    density = draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.49, 0.51, 0.9, 1.0]))
    return (
        size,
        min(size, max(1, round(density * size) + draw(st.integers(-1, 1)))),
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([None, 1.0, 0.9, -0.3, 0.0])),
    )


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([None, (0.8, 1.25), (1.0, 1.0), (0.0, 1e9)]), st.integers(1, 3))
def test_all_versions_give_the_definition_bit_for_bit(libraries, case, limits, threads):
    size, k, kind, old_kind, seed, scale = case
    gradient = make(kind, size, seed)
    old = None if scale is None else make(old_kind, size, seed + 1)
    kept = None if old is None else old.clone()
    scale = 1.0 if scale is None else scale
    bounds = {} if limits is None else {"least": int(limits[0] * k), "most": int(limits[1] * k) or 1}
    results = {}
    for name, library in {"reference": None, **libraries}.items():
        buffer = gradient.clone()
        with serving(library, threads):
            results[name] = select(old, buffer, k, scale=scale, **bounds), buffer
    chosen, residual = results["reference"]
    for name, (other, buffer) in results.items():
        assert same(chosen, other), name
        assert torch.equal(bits(residual), bits(buffer)), name
    for name, library in {"reference": None, **libraries}.items():
        buffer = torch.full_like(gradient, float("nan"))
        parts = gradient.clone().tensor_split(sorted({size // 7, size // 3, size - size // 5}))
        with serving(library, threads):
            assert same(chosen, select(old, buffer, k, scale=scale, parts=parts, **bounds)), name
        assert torch.equal(bits(residual), bits(buffer)), name
        assert torch.equal(bits(torch.cat(parts)), bits(gradient)), name
    acc = holds(old, gradient, scale, chosen, residual)
    count = chosen.indices.numel()
    assert count == k or (limits is not None and bounds["least"] <= count <= bounds["most"])
    # Whatever the count: the largest of that many, but for ties at the threshold all of which are taken.
    assert torch.equal(chosen.indices.long(), ranked(acc, count))
    assert old is None or torch.equal(bits(old), bits(kept))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("density", [0.3, 0.1, 0.01, 0.001])
def test_large_buffers_are_exact(libraries, density, threads):
    size = 2_000_003
    gradient, old = make("layers", size, 1), 1.5 * make("layers", size, 2)
    k = round(density * size)
    buffer, again = gradient.clone(), gradient.clone()
    with serving(libraries["native"], threads):
        chosen = select(old, buffer, k)
    acc = holds(old, gradient, 1.0, chosen, buffer)
    assert torch.equal(acc[chosen.indices.long()].abs().sort().values, torch.topk(acc.abs(), k).values.sort().values)
    with serving(None):
        assert same(select(old, again, k), chosen)
    assert torch.equal(bits(buffer), bits(again))


def test_a_sampled_threshold_is_unbiased_and_its_count_is_kept():
    size, k = 1_000_000, 10_000
    counts = [
        select(None, make("layers", size, seed), k, least=k // 2, most=2 * k).indices.numel() for seed in range(30)
    ]
    assert min(counts) < k < max(counts)
    assert sum(counts) / len(counts) == pytest.approx(k, rel=0.1)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("size", [7, 5000, 200_000])
@pytest.mark.parametrize("many", [False, True])
def test_sums_that_are_not_finite_are_noticed_wherever_they_are(libraries, value, size, many):
    for name, library in {"reference": None, **libraries}.items():
        for where in (0, size // 2, size - 1):
            for k in (1, size // 100 + 1, size):
                gradient, old = make("normal", size, 1), make("normal", size, 2)
                (old if where else gradient)[where :: 1 if many else size] = value
                with serving(library, 2):
                    chosen = select(old, gradient, k, scale=0.5)
                assert not chosen.finite, (name, where, k)
                assert torch.equal(chosen.indices, torch.arange(k, dtype=torch.int32))
                assert torch.equal(chosen.values, torch.zeros(k))


def test_infinities_that_cancel_to_not_a_number_and_sums_that_overflow_are_noticed(libraries):
    for library in (None, *libraries.values()):
        for a, b in ((float("inf"), float("-inf")), (3e38, 3e38)):
            gradient, old = torch.ones(50_000), torch.ones(50_000)
            gradient[77], old[77] = a, b
            with serving(library):
                assert not select(old, gradient, 100).finite


def test_results_stay_when_their_memory_is_asked_for_again(libraries):
    gradient = make("normal", 500_000, 3)
    with serving(libraries["native"]):
        first = select(None, gradient.clone(), 50_000)
        kept = first.indices.clone(), first.values[5:].clone()
        part = first.values[5:]
        del first
        others = [select(None, make("normal", 500_000, seed), 50_000) for seed in range(3)]
        again = select(None, gradient.clone(), 50_000)
    assert torch.equal(part, kept[1]) and torch.equal(again.indices, kept[0])
    assert len({other.values.data_ptr() for other in others}) == 3


def test_a_plan_samples_distinct_places_inside_the_buffer():
    for size in (1 << 14, (1 << 14) + 1, 99_999, 10**6, 10**7 + 3):
        plan = sampling.plan(size, size // 50)
        at = plan.positions()
        assert at[0] >= 0 and at[-1] < size and (np.diff(at) > 0).all() and at.size == plan.count
        assert 1 <= plan.middle <= plan.low < plan.count and 0 <= plan.high <= plan.middle


@pytest.mark.parametrize("limits", [None, (100, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_version_for_other_devices_gives_the_same(kind, limits):
    size, k = 60_000, 137
    gradient, old = make(kind, size, 1), make(kind, size, 2)
    one, two = gradient.clone(), gradient.clone()
    bounds = {} if limits is None else {"least": limits[0], "most": limits[1]}
    chosen = select(old, one, k, scale=0.7, **bounds)
    indices, values = select_device(old, two, k, 0.7, limits, sampling.plan(size, k))
    assert same(chosen, Selection(indices, values, True)) and torch.equal(bits(one), bits(two))


@pytest.mark.parametrize(
    ("old", "buffer", "k", "limits", "message"),
    [
        (None, torch.ones(10), 0, {}, "k must be in 1..10, not 0"),
        (None, torch.ones(10), 11, {}, "k must be in 1..10, not 11"),
        (None, torch.ones(10).double(), 1, {}, "buffer must be fp32"),
        (None, torch.ones(2, 5), 1, {}, "buffer must be fp32, 1-D"),
        (None, torch.ones(20)[::2], 1, {}, "contiguous"),
        (torch.ones(20)[::2], torch.ones(10), 1, {}, "old must be fp32, 1-D and contiguous"),
        (torch.ones(9), torch.ones(10), 1, {}, r"old is \(9,\)"),
        (None, torch.ones(10), 1, {"parts": [torch.ones(9)]}, "parts hold 9 elements, the buffer 10"),
        (None, torch.ones(10), 1, {"parts": [torch.ones(10).double()]}, "a part must be fp32"),
        (None, torch.ones(10), 5, {"least": 6, "most": 7}, "least and most"),
        (None, torch.ones(10), 5, {"least": 1}, "least and most"),
    ],
)
def test_wrong_arguments_are_refused(old, buffer, k, limits, message):
    with pytest.raises(ValueError, match=message):
        select(old, buffer, k, **limits)


@pytest.mark.parametrize("size", [2000, 200_000])
def test_the_default_type_and_device_of_the_program_do_not_matter(libraries, size):
    gradient = make("normal", size, 1)
    wanted = select(None, gradient.clone(), size // 5)
    for library in (None, *libraries.values()):
        buffer, broken = gradient.clone(), torch.full((size,), float("nan"))
        torch.set_default_dtype(torch.float64)
        try:
            with serving(library), torch.device("meta"):
                chosen, refused = select(None, buffer, size // 5), select(None, broken, 3)
        finally:
            torch.set_default_dtype(torch.float32)
        assert same(chosen, wanted)
        assert refused.values.dtype == torch.float32 and refused.values.device.type == "cpu"
