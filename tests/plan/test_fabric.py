"""Messages over links: alone, in a queue, over several levels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.plan.fabric import Fabric, Level, flat


def test_a_message_alone_takes_its_bytes_and_the_latency():
    fabric = flat(4, rate=100.0, latency_s=0.5)
    done = fabric.deliver(np.array([1.0]), np.array([0]), np.array([3]), np.array([200.0]))
    assert done.tolist() == [1.0 + 2.0 + 0.5]


def test_messages_of_one_rank_queue_on_its_link_and_those_to_one_rank_on_that_ones():
    fabric = flat(4, rate=1.0, latency_s=0.0)
    done = fabric.deliver(np.zeros(3), np.array([0, 0, 1]), np.array([1, 2, 2]), np.ones(3))
    assert sorted(done.tolist()) == [1.0, 2.0, 2.0]
    # The next one finds the links as they were left.
    assert fabric.deliver(np.zeros(1), np.array([0]), np.array([3]), np.ones(1)).tolist() == [3.0]
    fabric.rest()
    assert fabric.deliver(np.zeros(1), np.array([0]), np.array([3]), np.ones(1)).tolist() == [1.0]


def test_levels_share_their_up_links():
    levels = [
        Level(name="node", members=2, rate=100.0, latency_s=0.0),
        Level(name="network", members=2, rate=1.0, latency_s=1.0),
    ]
    fabric = Fabric(levels, 4)
    inside = fabric.deliver(np.zeros(1), np.array([0]), np.array([1]), np.array([100.0]))
    assert inside.tolist() == [1.0]
    fabric.rest()
    both = fabric.deliver(np.zeros(2), np.array([0, 1]), np.array([2, 3]), np.array([10.0, 10.0]))
    assert sorted(both.tolist()) == [11.0, 21.0]  # one node's link takes them one after the other
    with pytest.raises(ValueError, match="5 ranks where the levels hold 4"):
        Fabric(levels, 5)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_the_queue_is_what_an_event_after_the_other_gives(ranks, count, seed):
    draw = np.random.default_rng(seed)
    start, size = draw.random(count) * 5, draw.random(count) * 3
    source = draw.integers(0, ranks, count)
    target = (source + draw.integers(1, ranks, count)) % ranks
    fabric = flat(ranks, rate=2.0, latency_s=0.25)
    found = fabric.deliver(start, source, target, size)

    def served(ends):
        free, done = np.zeros(ranks), np.empty(count)
        for each in np.argsort(start, kind="stable"):
            free[ends[each]] = max(free[ends[each]], start[each]) + size[each] / 2.0
            done[each] = free[ends[each]]
        return done

    assert np.allclose(found, np.maximum(served(source), served(target)) + 0.25)


@pytest.mark.parametrize("ranks", [2, 5, 8])
def test_all_to_all_takes_as_long_as_the_busiest_link(ranks):
    fabric = flat(ranks, rate=10.0, latency_s=0.1)
    assert fabric.all_to_all(np.zeros(ranks), 5.0) == pytest.approx(np.full(ranks, (ranks - 1) * 0.5 + 0.1))
    levels = [
        Level(name="node", members=2, rate=1e9, latency_s=0.0),
        Level(name="network", members=4, rate=10.0, latency_s=0.1),
    ]
    shared = Fabric(levels, 8).all_to_all(np.zeros(8), 5.0)
    assert shared.max() == pytest.approx(2 * 6 * 0.5 + 0.1)  # what two ranks send to six goes over one link
