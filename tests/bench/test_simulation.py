"""The two benches that hold simulated seconds against real ones, on two ranks of loopback."""

import json

import pytest
from click.testing import CliRunner

from sparsetrain.bench.forecast import IDEAL, verdicts, ways
from sparsetrain.bench.forecast import Plan as ForecastPlan
from sparsetrain.bench.simulation import NAMES, errors
from sparsetrain.cli import cli


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_collective_is_measured_and_simulated():
    words = ["bench", "simulation", "--loopback", "--hosts", "2", "--size", "1e5", "--rounds", "2", "--json"]
    rows = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).output)
    assert [row["collective"] for row in rows] == list(NAMES)
    assert all(row["measured_ms"] > 0 and row["simulated_ms"] > 0 for row in rows)
    assert all(row["error"] == pytest.approx(row["simulated_ms"] / row["measured_ms"] - 1) for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_way_of_a_step_is_measured_and_planned():
    words = ["bench", "forecast", "--loopback", "--hosts", "2", "--rounds", "1", "--json"]
    rows = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).output)
    assert [row["way"] for row in rows] == [setting.name for setting in ways(ForecastPlan())]
    assert IDEAL not in [row["way"] for row in rows] and "packed" in [row["way"] for row in rows]
    assert len(verdicts(rows)) == 1 and "2 ranks: plan takes" in verdicts(rows)[0]


def test_errors_are_sizes():
    rows = [{"error": each} for each in (-0.3, 0.1, 0.2, -0.05, 0.0)]
    assert errors(rows) == (0.1, 0.3)
