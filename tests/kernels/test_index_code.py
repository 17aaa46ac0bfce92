import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels import index_code
from sparsetrain.kernels.index_code import CorruptCode

NAMES = ("elias_fano", "deltas", "block16", "bitmap")
ENCODE = {name: getattr(index_code, f"encode_{name}") for name in NAMES}
DECODE = {name: getattr(index_code, f"decode_{name}") for name in NAMES}


def places(size: int, count: int, kind: str, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    if kind == "front":
        chosen = np.arange(count)
    elif kind == "back":
        chosen = np.arange(size - count, size)
    elif kind == "runs":
        runs = np.flatnonzero(np.arange(size) // 37 % 5 == 0)[:count]
        chosen = np.union1d(runs, rng.choice(size, count, replace=False))[:count] if size else np.arange(0)
    else:
        chosen = np.sort(rng.choice(size, count, replace=False)) if size else np.arange(0)
    return torch.from_numpy(chosen.astype(np.int32))


@st.composite
def cases(draw):
    size = draw(st.one_of(st.integers(0, 300), st.integers(0, 200_000)))
    share = draw(st.sampled_from([0.0, 0.0005, 0.01, 0.1, 0.6, 1.0]))
    count = min(size, round(share * size) + draw(st.integers(0, 2)))
    return size, places(size, count, draw(st.sampled_from(["any", "front", "back", "runs"])), draw(st.integers(0, 99)))


@settings(max_examples=150, deadline=None)
@given(cases())
@pytest.mark.parametrize("name", NAMES)
def test_versions_write_the_same_bytes_and_read_them_back(libraries, name, case):
    size, indices = case
    written = {}
    for version, library in {"reference": None, **libraries}.items():
        with serving(library):
            written[version] = ENCODE[name](indices, size)
            back = DECODE[name](written[version], indices.numel(), size)
            assert back.dtype == torch.int32 and torch.equal(back, indices), version
            if name == "deltas":
                assert index_code.deltas_bytes(indices) == written[version].numel()
    assert all(torch.equal(data, written["reference"]) for data in written.values())
    sizes = {
        "elias_fano": index_code.elias_fano_bytes(indices.numel(), size),
        "block16": index_code.block16_bytes(indices.numel(), size),
        "bitmap": index_code.bitmap_bytes(size),
    }
    assert written["reference"].numel() == sizes.get(name, written["reference"].numel())


def damaged(data: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Cut, lengthened, flipped, overwritten or random bytes."""
    plain = data.numpy().copy()
    how = rng.integers(0, 6)
    if how == 0:
        plain = plain[: rng.integers(0, plain.size + 1)]
    elif how == 1:
        plain = np.append(plain, rng.integers(0, 256, rng.integers(1, 9), dtype=np.uint8))
    elif how == 2 and plain.size:
        plain = rng.integers(0, 256, plain.size, dtype=np.uint8)
    elif how == 3 and plain.size:
        plain[rng.integers(0, plain.size, 3)] = rng.choice([0, 255, 31, 32, 128])
    elif plain.size:
        at = rng.integers(0, plain.size * 8)
        plain[at // 8] ^= 1 << at % 8
    # Somewhere inside a longer message, on any byte.
    shift = int(rng.integers(0, 8))
    whole = torch.from_numpy(np.concatenate([np.full(shift, 255, np.uint8), plain, np.full(9, 255, np.uint8)]))
    return whole[shift : shift + plain.size]


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(0, 2**32), st.integers(-1, 1))
@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_refused_or_are_another_message(libraries, name, case, seed, off):
    size, indices = case
    count = max(0, indices.numel() + (off if seed % 5 == 0 else 0))
    data = damaged(ENCODE[name](indices, size), np.random.default_rng(seed))
    answers = []
    for library in (None, *libraries.values()):
        with serving(library):
            try:
                decoded = DECODE[name](data, count, size)
            except CorruptCode:
                answers.append(None)
                continue
            answers.append(decoded.tolist())
            assert index_code.check_ascending(decoded, size) and decoded.numel() == count
            # One message per set of places: what is accepted is what the encoder writes.
            assert torch.equal(ENCODE[name](decoded, size), data)
    assert all(answer == answers[0] for answer in answers)


def test_the_widest_gaps_and_the_largest_bucket(libraries):
    size = 2**31 - 1
    for listed in ([size - 1], [0, size - 1], [2**30, 2**30 + 1, 2**31 - 3], list(range(0, size, 2**24 + 1))):
        indices = torch.tensor(listed, dtype=torch.int32)
        for library in (None, *libraries.values()):
            with serving(library):
                for name in ("elias_fano", "deltas", "block16"):
                    data = ENCODE[name](indices, size)
                    assert torch.equal(DECODE[name](data, len(listed), size), indices), name


@pytest.mark.parametrize(
    ("listed", "size", "well"),
    [
        ([], 0, True),
        ([], 5, True),
        ([0], 1, True),
        ([0, 1, 4], 5, True),
        ([5], 5, False),
        ([-1, 2], 5, False),
        ([1, 1], 5, False),
        ([2, 1], 5, False),
        ([*range(40), 39], 50, False),
        ([*range(40), 2**31 - 1], 50, False),
    ],
)
def test_places_that_are_not_ascending_are_never_written(libraries, listed, size, well):
    indices = torch.tensor(listed, dtype=torch.int32)
    for library in (None, *libraries.values()):
        with serving(library):
            assert index_code.check_ascending(indices, size) is well
            for encode in ENCODE.values():
                if not well:
                    with pytest.raises(ValueError, match="not ascending"):
                        encode(indices, size)


def test_more_places_than_the_bucket_has_are_refused_before_memory_is_taken():
    for name in NAMES:
        with pytest.raises(CorruptCode):
            DECODE[name](torch.zeros(10, dtype=torch.uint8), 10**15, 10)
        with pytest.raises(ValueError, match="uint8"):
            DECODE[name](torch.zeros(10), 1, 10)


@pytest.mark.parametrize(("density", "most"), [(0.1, 5.7), (0.01, 9.5), (0.001, 13.0)])
def test_bits_per_place_stay_near_the_entropy(density, most):
    size = 1_000_000
    assert 8 * index_code.elias_fano_bytes(round(density * size), size) / (density * size) < most


def test_runs_take_few_bits_as_deltas():
    take = functools.partial(places, 100_000, 5_000, seed=1)
    assert index_code.deltas_bytes(take(kind="front")) == 40
    assert index_code.deltas_bytes(take(kind="any")) > 10 * 40
