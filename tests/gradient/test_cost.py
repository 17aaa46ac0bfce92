"""The cost model against cases that a pencil solves."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.collective.collective import Volume
from sparsetrain.gradient.cost import Compute, Network, Stages, exchange_seconds, step_seconds

NETWORK = Network(latency_s=0.001, reduce_rate=1000.0, gather_rate=500.0)
ONE = Stages(select_s=0.1, merge_s=0.2, volume=Volume(50.0, 3.0))


def test_one_bucket_after_compute_is_a_sum():
    compute = Compute(seconds=1.0, overlap=False, spare=1.0)
    assert exchange_seconds([ONE], [10], NETWORK, compute) == pytest.approx(1.0 + 0.1 + 50 / 500 + 3 * 0.001 + 0.2)


def test_an_all_reduce_goes_at_its_own_rate():
    compute = Compute(seconds=1.0, overlap=False, spare=1.0)
    reduced = dataclasses.replace(ONE, reduces=True)
    assert exchange_seconds([reduced], [10], NETWORK, compute) == pytest.approx(1.0 + 0.1 + 0.05 + 0.003 + 0.2)


def test_the_link_carries_one_bucket_at_a_time_while_the_next_is_selected():
    compute = Compute(seconds=0.0, overlap=True, spare=1.0)
    stage = Stages(select_s=0.1, merge_s=0.0, volume=Volume(500.0, 0.0))
    # selected at 0.1 and 0.2; on the link 0.1 to 1.1 and 1.1 to 2.1
    assert exchange_seconds([stage, stage], [1, 1], NETWORK, compute) == pytest.approx(2.1)


def test_buckets_leave_while_backward_runs():
    compute = Compute(seconds=3.0, overlap=True, spare=1.0)
    stage = Stages(select_s=0.0, merge_s=0.0, volume=Volume(250.0, 0.0))  # half a second on the link
    # ready at 2.0 and 3.0
    assert exchange_seconds([stage, stage], [1, 1], NETWORK, compute) == pytest.approx(3.5)
    assert exchange_seconds([stage, stage], [1, 1], NETWORK, dataclasses.replace(compute, overlap=False)) == 4.0


def test_without_a_processor_to_spare_the_exchange_costs_compute_time():
    stage = Stages(select_s=0.25, merge_s=0.25, volume=Volume(0.0, 0.0))
    busy, free = Compute(seconds=3.0, spare=0.0), Compute(seconds=3.0, spare=1.0)
    assert exchange_seconds([stage] * 4, [1] * 4, NETWORK, busy) >= 3.0 + 4 * 0.5
    assert exchange_seconds([stage] * 4, [1] * 4, NETWORK, free) == pytest.approx(3.5)


def test_local_steps_share_one_exchange():
    compute = Compute(seconds=1.0, every=5, spare=1.0)
    alone = exchange_seconds([ONE], [10], NETWORK, dataclasses.replace(compute, every=1, overlap=False)) - 1.0
    assert step_seconds([ONE], [10], NETWORK, compute) == pytest.approx(1.0 + alone / 5)


seconds = st.floats(0.0, 1.0)
stages = st.builds(
    Stages, select_s=seconds, merge_s=seconds, volume=st.builds(Volume, st.floats(0, 1000), st.floats(0, 8))
)


@given(st.lists(st.tuples(stages, st.integers(1, 100)), min_size=1, max_size=6), seconds, st.floats(0.0, 1.0))
def test_bounds(buckets, computing, spare):
    """Never sooner than the wire or the processors allow, never later than one thing after the other."""
    parts, sizes = [stage for stage, _ in buckets], [size for _, size in buckets]
    compute = Compute(seconds=computing, spare=spare)
    found = exchange_seconds(parts, sizes, NETWORK, compute)
    wire = sum(NETWORK.seconds(s.volume, s.reduces) for s in parts)
    working = sum(s.processor_s for s in parts)
    messages = sum(s.volume.messages for s in parts) * NETWORK.latency_s
    assert found >= max(wire, computing + (1 - spare) * working) - 1e-9
    assert found <= computing + wire + 2 * working + messages + 1e-9
    slower = dataclasses.replace(NETWORK, gather_rate=NETWORK.gather_rate / 10)
    assert exchange_seconds(parts, sizes, slower, compute) >= found - 1e-9
