"""The planner beside every regime on real ranks: rows are whole, and the way taken is one that is allowed."""

import json
import math

import pytest

from sparsetrain.bench.auto import COLUMNS, Plan, measure, show
from sparsetrain.bench.hosts import Hosts
from sparsetrain.bench.ranks import Ranks
from sparsetrain.cli import main

SMALL = {"layers": 1, "width": 64, "context": 16, "batch": 1, "steps": 2, "rounds": 2}


@pytest.mark.slow
@pytest.mark.timeout(110)
def test_a_cell_on_loopback():
    plan = Plan(**SMALL, sparsity=0.9)
    row = measure(Ranks(hosts=2, rate="none", loopback=True, limit_s=90), plan)
    assert set(COLUMNS) <= set(row) and row["took"] in (*plan.allow, "mixed") and row["best"] in plan.allow
    assert all(row[f"{name}_ms"] > 0 for name in (*plan.allow, "auto"))
    json.dumps(row)
    assert show([row], plan).count("\n") == 2


@pytest.mark.netns
@pytest.mark.timeout(110)
def test_a_slow_link_is_measured_and_never_taken_densely():
    if reason := Hosts.missing():
        pytest.skip(reason)
    plan = Plan(**SMALL | {"width": 256, "rounds": 1})
    row = measure(Ranks(hosts=2, rate="20mbit", limit_s=90), plan)
    assert row["took"] in ("sparse", "lowrank") and "packed_ms" not in row
    assert 15 < row["link_mbit"] < 25
    assert row["over_dense"] < 0.7


@pytest.mark.netns
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("rate", "then"), [("300mbit", "30mbit"), ("20mbit", "200mbit")])
def test_links_that_change_by_ten_are_noticed_at_the_next_look(rate, then):
    if reason := Hosts.missing():
        pytest.skip(reason)
    plan = Plan(**SMALL | {"width": 256, "rounds": 1}, replan=20)
    row = measure(Ranks(hosts=2, rate=rate, then=then, limit_s=120), plan)
    assert row["noticed_after"] <= plan.replan + 1
    assert row["why"].startswith("links of ") and ", no longer " in row["why"]
    # a busy machine may measure less than the link gives, never less than half way (in factors) from the old rate
    before, after = (int(each.removesuffix("mbit")) for each in (rate, then))
    assert abs(math.log(row["link_mbit"] / after)) < abs(math.log(row["link_mbit"] / before))
    assert row["took"] in ("sparse", "lowrank") or then == "200mbit"
    assert row["over_dense"] < 1.1
    assert f"{then}" in show([row], plan)


@pytest.mark.netns
@pytest.mark.timeout(150)
def test_the_choice_follows_the_links():
    """With six times the steps sparse pays on slow links only."""
    if reason := Hosts.missing():
        pytest.skip(reason)
    plan = Plan(**SMALL | {"width": 256, "rounds": 1}, replan=20, factor=6.0, allow=("dense", "sparse"))
    row = measure(Ranks(hosts=2, rate="none", then="20mbit", limit_s=120), plan)
    assert row["took_before"] == "dense" and row["took"] == "sparse" and row["why"].startswith("links of ")
    assert row["best"] == "sparse" and row["over_dense"] < 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "rubbish", "--loopback"], "rate 'rubbish'"),
        (["--rate", "10mbit", "--loopback"], "loopback has no rate"),
        (["--limit", "nan"], "a limit of seconds above 0"),
        (["--factor", "0"], "factor 0: want 0.01 to 100"),
        (["--then", "fast"], "rate 'fast'"),
        (["--then", "1gbit", "--loopback"], "no rate that could change"),
        (["--rate", "fast"], "rate"),
        (["--sparsity", "1"], "sparsity in [0, 1)"),
        (["--density", "0"], "density in (0, 1]"),
        (["--rank", "0"], "counts of at least 1"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "auto", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
