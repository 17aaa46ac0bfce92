import pytest

from sparsetrain.plan.cluster import Failures
from sparsetrain.plan.failures import follow


def test_nothing_fails_and_nothing_is_lost():
    found = follow(1000, 8, 2.0, Failures(), memory=True, checkpoint_every=10)
    assert (found.goodput, found.losses) == (1.0, 0)
    assert found.hours == pytest.approx(2000 / 3600)


def test_more_failures_cost_more_and_memory_costs_less_than_checkpoints():
    def goodput(hours: float, memory: bool) -> float:
        rare = Failures(node_hours=hours, recovery_s=5, restart_s=60, replaced_s=300)
        runs = [follow(300_000, 32, 1.0, rare, memory, 100, seed=seed) for seed in range(5)]
        assert all(run.losses > 0 for run in runs)
        return sum(run.goodput for run in runs) / 5

    often, seldom = goodput(20, True), goodput(200, True)
    assert often < seldom < 1.0
    assert goodput(20, False) < often


def test_a_loss_takes_back_to_the_checkpoint_and_costs_the_restart():
    """One node that surely fails: what is lost can be counted by hand."""
    failing = Failures(node_hours=1.0, restart_s=100, replaced_s=0, recovery_s=0)
    found = follow(3600, 1, 1.0, failing, memory=False, checkpoint_every=10, seed=3)
    assert found.losses >= 1
    lost = found.hours * 3600 - 3600
    assert 100 * found.losses <= lost <= 110 * found.losses


def test_what_cannot_be_trained_is_given_up():
    hopeless = Failures(node_hours=0.01, restart_s=600, replaced_s=600)
    found = follow(100_000, 4, 1.0, hopeless, memory=False, checkpoint_every=0)
    assert found.goodput == 0.0 and found.hours == float("inf")
