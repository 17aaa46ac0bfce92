"""What is chosen from predictions and measurements, and what is said of it."""

import pytest

from sparsetrain.config.job import Exchange
from sparsetrain.gradient.cost import Network
from sparsetrain.gradient.decision import Candidate, Decision, choose, finalists

NETWORK = Network(latency_s=2e-4, reduce_rate=1.2e7, gather_rate=1.2e7)


def way(name, predicted, measured=None, factor=1.0):
    return Candidate(
        name=name,
        settings=(Exchange(regime=name),),
        lossless=name in ("dense", "packed"),
        steps_factor=factor,
        predicted_s=predicted,
        measured_s=measured,
    )


def test_the_quickest_to_equal_loss_wins_not_the_quickest_step():
    assert choose([way("dense", 1.0), way("sparse", 0.5)])[0].name == "sparse"
    assert choose([way("dense", 1.0), way("sparse", 0.5, factor=3.0)])[0].name == "dense"


@pytest.mark.parametrize(("sparse", "chosen"), [(0.89, "sparse"), (0.91, "dense"), (1.2, "dense")])
def test_under_a_tenth_of_gain_nothing_is_lost(sparse, chosen):
    found, why = choose([way("dense", 1.0), way("sparse", sparse)])
    assert found.name == chosen
    assert ("under 10 %" in why) == (sparse == 0.91)


def test_what_loses_nothing_needs_no_such_gain():
    assert choose([way("dense", 1.0), way("packed", 0.99)])[0].name == "packed"


@pytest.mark.parametrize(("sparse", "chosen"), [(0.47, "sparse"), (0.49, "packed"), (0.6, "packed")])
def test_the_gain_is_over_dense_and_the_best_lossless_way_needs_only_be_left_behind(sparse, chosen):
    found, why = choose([way("dense", 1.0), way("packed", 0.5), way("sparse", sparse)])
    assert found.name == chosen and "under" not in why


def test_without_dense_the_gain_is_over_what_loses_nothing():
    assert choose([way("packed", 0.5), way("sparse", 0.47)])[0].name == "packed"
    assert choose([way("sparse", 0.47), way("lowrank", 0.4)])[0].name == "lowrank"


def test_measurements_stand_before_predictions():
    found, why = choose([way("dense", 9.0), way("sparse", 0.5, 1.0), way("lowrank", 0.6, 0.8)])
    assert found.name == "lowrank"
    assert why == "800 ms a step; dense 9e+03 ms a step predicted; sparse 1e+03 ms a step"


def test_what_was_not_tried_does_not_win_by_its_prediction():
    found, _ = choose([way("dense", 0.5), way("packed", 0.6, 1.5), way("sparse", 0.6, 1.2)])
    assert found.name == "sparse"


def test_finalists_are_those_near_the_best_prediction():
    ways = [way("dense", 2.0), way("packed", 1.25), way("sparse", 1.0), way("lowrank", 1.2, factor=2.0)]
    assert [each.name for each in finalists(ways, 1.3, 4)] == ["sparse", "packed"]
    assert [each.name for each in finalists(ways, 3.0, 2)] == ["sparse", "packed"]


def test_a_decision_fits_in_a_line_and_says_everything_in_its_row():
    ways = (way("dense", 1.0), way("sparse", 0.1, 0.2))
    decision = Decision(
        exchange=4, epoch=1, network=NETWORK, compute_s=0.05, candidates=ways, chosen=ways[1], why=choose(ways)[1]
    )
    assert decision.line() == (
        "exchange 4: sparse, 200 ms a step; dense 1e+03 ms a step predicted (compute 50 ms; links 96 Mbit/s, 0.2 ms a "
        "message)"
    )
    row = decision.row()
    assert row["chosen"] == "sparse" and row["candidates"][0]["predicted_s"] == 1.0
    assert row["candidates"][1] == {
        "name": "sparse",
        "regimes": ["sparse"],
        "lossless": False,
        "steps_factor": 1.0,
        "bytes_per_step": 0,
        "predicted_s": 0.1,
        "measured_s": 0.2,
    }
