import json

import pytest
from click.testing import CliRunner

from sparsetrain.bench import scaling
from sparsetrain.bench.goodput import Plan, measure
from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.plan.costs import Costs


def test_failures_cost_more_with_more_nodes_and_less_in_memory():
    links = scaling.Plan(ranks=(2, 128, 2048), size=1_000_000)
    rows = measure(Plan(node_hours=(1e9, 1000.0), steps=20_000), links, costs=Costs())
    safe, failing = rows[:3], rows[3:]
    assert all(row["in_memory"] == row["checkpoints"] == 1 and row["losses"] == 0 for row in safe)
    assert failing[0]["in_memory"] >= failing[1]["in_memory"] > failing[2]["in_memory"] > failing[2]["checkpoints"]
    assert failing[2]["losses"] > failing[1]["losses"] > 0
    for row in rows:
        step = row["ranks"] * 0.5 / (0.5 + row["exchange_ms"] / 1e3)
        assert row["sparse"] == pytest.approx(step * row["in_memory"])


def test_nodes_hold_eight_ranks_where_a_fabric_has_nodes():
    plan = Plan(node_hours=(100.0,), steps=20_000)
    flat, nodes = (
        measure(plan, scaling.Plan(ranks=(512,), fabric=fabric, size=1_000_000), costs=Costs())[0]["losses"]
        for fabric in ("flat", "two_level")
    )
    assert flat > 4 * nodes > 0


def test_the_verb_prints_a_table_and_refuses_what_makes_no_sense(monkeypatch):
    monkeypatch.setattr(scaling, "LOOKS", 1)  # at this processor: a second or two each
    words = ["bench", "goodput", "--ranks", "4", "--size", "20000", "--steps", "100"]
    shown = CliRunner().invoke(cli, words, catch_exceptions=False).output
    assert shown.startswith("simulated, flat: 100 steps of 0.5 s") and "in_memory" in shown
    rows = json.loads(CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False).output)
    assert [row["node_hours"] for row in rows] == [10_000, 1000]
    for more, line in (
        (["--node-hours", "0"], "want node hours above 0"),
        (["--compute", "nan"], "want seconds above 0"),
    ):
        with pytest.raises(JobError, match=f"bench goodput: {line}"):
            CliRunner().invoke(cli, [*words, *more], catch_exceptions=False)
