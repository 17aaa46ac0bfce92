"""Decisions after a loss: pure functions of what was lost before."""

import pytest

from sparsetrain.config.job import Recovery
from sparsetrain.launch.failure import Failure
from sparsetrain.launch.policy import STUBBORN, FailurePolicy, Incident


def died(rank=1):
    return Failure(rank=rank, host="h", node="n", pid=1, kind="died", message="gone", at=1.0)


def raised(message="boom", type="ValueError"):
    return Failure(rank=0, host="h", node="n", pid=1, kind="error", type=type, message=message, at=2.0)


def test_a_lost_worker_is_made_up_for_at_once():
    decision = FailurePolicy(Recovery()).decide(Incident(failures=(died(),), step=5))
    assert (decision.action, decision.wait_s) == ("recover", 0.0)
    assert decision.why == "rank 1 on h (node n, process 1) failed: gone"


def test_an_exception_ends_the_run_and_a_lost_peer_does_not():
    assert FailurePolicy(Recovery()).decide(Incident(failures=(raised(),), step=5)).action == "end"
    lost = raised("Connection closed by peer", "PeerLost")
    assert FailurePolicy(Recovery()).decide(Incident(failures=(lost,), step=5)).action == "recover"
    assert FailurePolicy(Recovery()).decide(Incident(failures=(lost, died()), step=5)).action == "recover"


def test_crashes_have_a_budget():
    policy = FailurePolicy(Recovery(crashes=3, calm=1))
    actions = [policy.decide(Incident(failures=(died(),), step=10 * n)).action for n in range(4)]
    assert actions == ["recover", "recover", "recover", "end"]
    two = FailurePolicy(Recovery(crashes=1)).decide(Incident(failures=(died(1), died(2)), step=3))
    assert (two.action, "2 lost, recovery.crashes allows 1" in two.why) == ("end", True)


def test_announced_ends_have_a_budget_of_their_own():
    policy = FailurePolicy(Recovery(crashes=0, preemptions=2))
    assert policy.decide(Incident(left=2, step=1)).action == "recover"
    ended = policy.decide(Incident(left=1, step=2))
    assert (ended.action, "recovery.preemptions" in ended.why) == ("end", True)


def test_waiting_doubles_with_losses_in_a_row_and_begins_small_after_calm():
    policy = FailurePolicy(Recovery(backoff=1.0, backoff_limit=3.0, calm=100))
    waits = [policy.decide(Incident(failures=(died(),), step=step)).wait_s for step in (10, 11, 12, 13, 14)]
    assert waits == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert policy.decide(Incident(failures=(died(),), step=114)).wait_s == 0.0


@pytest.mark.parametrize("step", [0, 7])
def test_losses_without_a_step_between_end_the_run(step):
    policy = FailurePolicy(Recovery(crashes=100))
    actions = [policy.decide(Incident(failures=(died(),), step=step)).action for _ in range(STUBBORN)]
    assert actions == ["recover"] * (STUBBORN - 1) + ["end"]
