"""Candidates take turns, ratios pair rounds, tables align."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.bench.table import interleave, median, ratio, render


@given(st.integers(1, 5), st.integers(0, 3))
def test_candidates_take_turns(rounds, warmup):
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds, warmup)
    assert calls == ["a", "b"] * (rounds + warmup)
    assert list(seconds) == ["a", "b"]
    assert all(len(values) == rounds and min(values) >= 0 for values in seconds.values())


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_no_round_is_refused(rounds, warmup):
    with pytest.raises(ValueError, match="want at least 1 round"):
        interleave({}, rounds, warmup)


def test_each_call_is_timed_by_itself(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    assert interleave({"a": lambda: spend(1.0), "b": lambda: spend(3.0)}, 2) == {"a": [1.0, 1.0], "b": [3.0, 3.0]}


def test_ratio_pairs_rounds():
    seconds = {"a": [1.0, 10.0, 100.0], "b": [2.0, 20.0, 150.0]}  # the machine slows down; b takes twice as long
    assert median(seconds) == {"a": 10.0, "b": 20.0}
    assert ratio(seconds, "a") == {"a": 1.0, "b": 2.0}
    with pytest.raises(ValueError):
        ratio({"a": [1.0], "b": [1.0, 2.0]}, "a")


def test_table_aligns():
    rows = [
        {"name": "dense", "time_ms": 1278.4, "sent_bytes": 150_000_000},
        {"name": "top-1 %", "time_ms": 0.12344, "sent_bytes": None, "unused": 1},
    ]
    assert render(rows, ["name", "time_ms", "sent_bytes"]) == (
        "name     time_ms  sent_bytes\ndense       1278   150000000\ntop-1 %   0.1234           -"
    )


def test_words_and_truths_go_left_and_no_rows_is_a_heading():
    assert render([{"exact": True, "n": 1}, {"exact": "no", "n": 20}], ["exact", "n"]) == (
        "exact   n\nTrue    1\nno     20"
    )
    assert render([], ["a", "b"]) == "a  b"
