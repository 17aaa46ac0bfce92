import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.track.thin import Thin

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=300)


def thinned(values: list[float], kept: int, chunk: int) -> list[tuple[float, float]]:
    thin = Thin(kept)
    for start in range(0, len(values), chunk):
        part = np.array(values[start : start + chunk])
        thin.add(np.arange(start, start + len(part), dtype=float), part)
    return thin.points()


@given(VALUES, st.integers(2, 20), st.integers(1, 50))
def test_extremes_and_ends_stay_and_nothing_is_made_up(values, kept, chunk):
    good = [(float(x), y) for x, y in enumerate(values) if np.isfinite(y)]
    points = thinned(values, kept, chunk)
    assert set(points) <= set(good) and points == sorted(points)
    if good:
        assert points[0] == good[0] and points[-1] == good[-1]
        assert min(y for _, y in points) == min(y for _, y in good)
        assert max(y for _, y in points) == max(y for _, y in good)
    if len(good) <= 2 * kept:
        assert points == good
    assert len(points) <= 4 * kept + 4


@given(VALUES, st.integers(2, 20), st.integers(1, 50), st.integers(1, 50))
def test_chunks_make_no_difference_as_long_as_all_is_kept(values, kept, one, other):
    values = values[: 2 * kept]
    assert thinned(values, kept, one) == thinned(values, kept, other)


def test_a_peak_of_one_point_in_a_million_is_seen():
    values = np.ones(1_000_000)
    values[765_432], values[123_456] = 50.0, -50.0
    thin = Thin(100)
    for start in range(0, len(values), 4096):
        thin.add(np.arange(start, min(start + 4096, len(values)), dtype=float), values[start : start + 4096])
    points = thin.points()
    assert (765_432.0, 50.0) in points and (123_456.0, -50.0) in points and len(points) <= 404
