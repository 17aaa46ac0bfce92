"""Messages come back whole whatever their lengths do, and nobody asks for a length twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.collective.entries import Entries
from sparsetrain.collective.index_codes import Deltas
from sparsetrain.collective.payload import HEADER, Codec, CorruptPayload, Frame
from sparsetrain.collective.rooms import SLACK, Rooms
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.value_codes import FP32
from sparsetrain.config.component import NoOptions

FRAME = Frame(size=5000, epoch=0, bucket=3)
CODEC = Codec(Deltas(NoOptions()), FP32(NoOptions()))


def message(count: int) -> torch.Tensor:
    """Return a message whose length grows with `count`."""
    return CODEC.encode(Entries(torch.arange(count, dtype=torch.int32), torch.randn(count)), FRAME)


def gathered(lengths: list[list[int]]) -> tuple[list[list[list[torch.Tensor]]], list[list[torch.Tensor]], list[float]]:
    """Return what each rank got in each call, what each sent, and what rank 0 booked per call."""
    sent = [[message(count) for count in counts] for counts in lengths]
    booked: list[float] = []

    def body(world):
        rooms, got = Rooms(), []
        for messages in sent:
            before = world.transport.meter.total
            got.append(rooms.gather(messages[world.rank], FRAME, 1000, world.transport))
            if world.rank == 0:
                booked.append(world.transport.meter.total - before)
        return got

    return Simulation(len(lengths[0])).run(body), sent, booked


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda size: st.lists(st.lists(st.integers(0, 900), min_size=size, max_size=size), min_size=1, max_size=4)
    )
)
def test_messages_come_back_whole_whatever_their_lengths_do(lengths):
    ranks, sent, _ = gathered(lengths)
    for got in ranks:
        for call, messages in zip(got, sent, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(call, messages, strict=True))


def test_lengths_travel_once_and_then_again_only_for_what_does_not_fit():
    _, sent, booked = gathered([[500, 510], [505, 500], [500, 700], [700, 700]])
    sizes = [[each.numel() for each in messages] for messages in sent]
    room = [round(-(-max(size) * SLACK // 1)) for size in sizes]
    assert booked[0] == sizes[0][0] + 8
    assert booked[1] == pytest.approx(room[0], abs=1)
    assert booked[2] == pytest.approx(sizes[2][1], abs=1)  # what did not fit follows
    assert booked[3] == pytest.approx(room[2], abs=1)


def test_rooms_follow_the_estimate():
    def body(world):
        rooms = Rooms()
        rooms.gather(message(400), FRAME, 1000, world.transport)
        before = world.transport.meter.total
        rooms.gather(message(30), FRAME, 100, world.transport)
        return world.transport.meter.total - before

    assert Simulation(2).run(body)[0] == pytest.approx(message(400).numel() * SLACK / 10, abs=1)


def test_forgetting_asks_again():
    def body(world):
        rooms = Rooms()
        rooms.gather(message(400), FRAME, 1000, world.transport)
        rooms.forget()
        before = world.transport.meter.total
        rooms.gather(message(400), FRAME, 1000, world.transport)
        return world.transport.meter.total - before

    assert Simulation(2).run(body)[0] == message(400).numel() + 8


def test_a_header_that_promises_too_much_is_refused_before_anything_is_allocated():
    def body(world):
        rooms = Rooms()
        rooms.gather(message(400), FRAME, 1000, world.transport)
        bad = message(400)
        if world.rank == 1:
            bad[HEADER.size - 8 : HEADER.size - 4] = 255  # the length
        with pytest.raises(CorruptPayload, match="rank 1, bucket 3: 42949"):
            rooms.gather(bad, FRAME, 1000, world.transport)
        return True

    assert Simulation(2).run(body) == [True, True]
