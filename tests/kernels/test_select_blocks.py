import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving
from selections import KINDS, bits, holds, make, ranked, same

from sparsetrain.kernels.select import select, select_blocks


def shares(size: int, k: int, block: int) -> list[tuple[int, int, int]]:
    """The definition: begin, end and share of each block."""
    ends = [(begin, min(begin + block, size)) for begin in range(0, size, block)]
    return [(begin, end, k * end // size - k * begin // size) for begin, end in ends]


@st.composite
def cases(draw):
    size = draw(st.one_of(st.integers(1, 300), st.integers(1, 100_000)))
    density = draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.49, 0.51, 0.9, 1.0]))
    return (
        size,
        min(size, max(1, round(density * size) + draw(st.integers(-1, 1)))),
        draw(st.one_of(st.integers(max(1, size // 40), size + 1), st.sampled_from([1 << 13, 1 << 14, (1 << 15) + 1]))),
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([None, 1.0, 0.9, -0.3, 0.0])),
    )


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 3))
def test_all_versions_give_the_definition_bit_for_bit(libraries, case, threads):
    size, k, block, kind, old_kind, seed, scale = case
    gradient = make(kind, size, seed)
    old = None if scale is None else make(old_kind, size, seed + 1)
    scale = 1.0 if scale is None else scale
    results = {}
    for name, library in {"reference": None, **libraries}.items():
        buffer, scattered = gradient.clone(), torch.full_like(gradient, float("nan"))
        parts = gradient.clone().tensor_split(sorted({size // 7, size // 3, size - size // 5}))
        with serving(library, threads):
            results[name] = select_blocks(old, buffer, k, block, scale=scale), buffer
            assert same(results[name][0], select_blocks(old, scattered, k, block, scale=scale, parts=parts)), name
        assert torch.equal(bits(buffer), bits(scattered)), name
        assert torch.equal(bits(torch.cat(parts)), bits(gradient)), name
    chosen, residual = results["reference"]
    for name, (other, buffer) in results.items():
        assert same(chosen, other) and torch.equal(bits(residual), bits(buffer)), name
    acc = holds(old, gradient, scale, chosen, residual)
    wanted = [begin + ranked(acc[begin:end], share) for begin, end, share in shares(size, k, block)]
    assert chosen.indices.numel() == k and torch.equal(chosen.indices.long(), torch.cat(wanted))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1000, 1 << 16, 1 << 20])
@pytest.mark.parametrize("density", [0.3, 0.01, 0.00001])
def test_large_buffers_are_exact_in_every_block(libraries, density, block, threads):
    size = 2_000_003
    gradient, old = make("layers", size, 1), 1.5 * make("layers", size, 2)
    k = round(density * size)
    buffer = gradient.clone()
    with serving(libraries["native"], threads):
        chosen = select_blocks(old, buffer, k, block)
    acc = holds(old, gradient, 1.0, chosen, buffer)
    at = 0
    for begin, end, share in shares(size, k, block):
        inside = chosen.indices[at : at + share].long()
        assert bool(((begin <= inside) & (inside < end)).all())
        assert torch.equal(acc[inside].abs().sort().values, torch.topk(acc[begin:end].abs(), share).values.flip(0))
        at += share
    assert at == k


def test_a_sample_that_sees_only_what_is_large_is_corrected(libraries):
    size = 1 << 16
    gradient = torch.full((size,), 0.5)
    gradient[:: size >> 11] = 3.0
    gradient[5::1000] = 2.0
    for library in (None, *libraries.values()):
        buffer = torch.cat([gradient, gradient])
        with serving(library):
            chosen = select_blocks(None, buffer, 8192, size)
        assert torch.equal(chosen.indices[:4096].long(), ranked(gradient, 4096))
        assert torch.equal(chosen.indices[4096:], chosen.indices[:4096] + size)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("k", [1, 3000, 90_000])
def test_sums_that_are_not_finite_are_noticed_in_blocks_without_a_share_too(libraries, value, k):
    size, block = 100_000, 9000
    for name, library in {"reference": None, **libraries}.items():
        for where in (0, size // 2, size - 1):
            gradient, old = make("normal", size, 1), make("normal", size, 2)
            (old if where else gradient)[where] = value
            with serving(library, 2):
                chosen = select_blocks(old, gradient, k, block, scale=0.5)
            assert not chosen.finite, (name, where)
            assert torch.equal(chosen.indices, torch.arange(k, dtype=torch.int32))
            assert torch.equal(chosen.values, torch.zeros(k))


def test_one_block_is_the_whole(libraries):
    gradient = make("layers", 50_000, 3)
    for library in (None, *libraries.values()):
        one, two, three = (gradient.clone() for _ in range(3))
        with serving(library):
            whole = select(None, one, 500)
            assert same(whole, select_blocks(None, two, 500, 50_000))
            assert same(whole, select_blocks(None, three, 500, 1 << 40))
        assert torch.equal(one, two) and torch.equal(one, three)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="block must be at least 1, not 0"):
        select_blocks(None, torch.ones(10), 3, 0)
    with pytest.raises(ValueError, match=r"k must be in 1..10, not 11"):
        select_blocks(None, torch.ones(10), 11, 4)
    with pytest.raises(ValueError, match="parts hold 9 elements, the buffer 10"):
        select_blocks(None, torch.ones(10), 3, 4, parts=[torch.ones(9)])
