"""Candidate growth beside the dense rule on real ranks."""

from __future__ import annotations

import json

import pytest

from sparsetrain.bench.growth import COLUMNS, Plan, measure, show
from sparsetrain.bench.growth_rank import ONE_ROUND, looked_at
from sparsetrain.bench.ranks import Ranks
from sparsetrain.cli import main

SMALL = {"layers": 1, "context": 16, "batch": 4, "steps": 40, "every": 10, "points": 2, "batches": (4, 32)}


@pytest.mark.slow
@pytest.mark.timeout(110)
def test_candidates_grow_what_the_dense_rule_grows_at_a_share_of_its_bytes_and_one_round_grows_less_for_more():
    plan = Plan(**SMALL, shares=(0.02, 0.045))
    result = measure(Ranks(hosts=4, rate="none", loopback=True, limit_s=90), plan)
    rows = result["rows"]
    assert all(set(each) == set(COLUMNS) for each in rows)
    assert [each["step"] for each in rows[::8]] == [10, 20] and len(rows) == 2 * 2 * 4
    for dense, thrifty, usual, one in (rows[at : at + 4] for at in range(0, len(rows), 4)):
        assert (dense["rule"], one["rule"]) == ("dense", ONE_ROUND)
        assert dense["recall"] == dense["of_dense"] == 1 and dense["grown"] > 0
        assert dense["bytes"] == 2 * 4 * result["masked"] * 3 / 4
        assert usual["recall"] >= 0.95 and usual["of_dense"] < 0.05
        assert thrifty["bytes"] < usual["bytes"] < one["bytes"]
        assert one["recall"] <= usual["recall"]
    json.dumps(result)
    assert show(result).count("\n") == 1 + len(rows)


def test_points_are_spread_over_the_updates():
    assert looked_at(list(range(10, 100, 10)), 3) == [10, 50, 90]
    with pytest.raises(ValueError, match="5 points of a run with 4"):
        looked_at([1, 2, 3, 4], 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--points", "1"], "at least 2 points"),
        (["--share", "0"], "shares in (0, 1]"),
        (["--batch", "0"], "counts of at least 1"),
        (["--ranks", "1"], "--ranks"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "growth", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err and err.count("\n") == 1
