import pytest

from sparsetrain.gradient.density import density_at, entries


def test_density_falls_geometrically_and_then_stays():
    assert density_at(0, 0.01, 0.25, 10) == 0.25
    assert density_at(5, 0.01, 0.25, 10) == pytest.approx(0.05)
    assert density_at(10, 0.01, 0.25, 10) == 0.01
    assert density_at(3, 0.5, 0.25, 10) == 0.5


def test_entries_never_reach_zero_nor_exceed_the_bucket():
    assert entries(0.01, 1000) == 10
    assert entries(0.0001, 1000) == 1
    assert entries(1.0, 7) == 7
