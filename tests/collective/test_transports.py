import contextlib
import os
import sys
import time

import mpi_ranks
import pytest
import torch
from ranks import gloo_ranks
from transport_calls import check_conformance, check_same_bits, check_two_threads, conformance, same_bits, two_threads

from sparsetrain.collective import mpi
from sparsetrain.collective.meter import ByteMeter
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.transport import Alone
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError


def simulated_ranks(size, body):
    return Simulation(size).run(body)


needs_mpi = pytest.mark.skipif(bool(mpi_ranks.missing()), reason=mpi_ranks.missing())
EVERY = pytest.mark.parametrize(
    ("ranks", "size"),
    [
        *(pytest.param(simulated_ranks, size, id=f"simulated-{size}") for size in (1, 2, 3, 4)),
        *(pytest.param(gloo_ranks, size, id=f"gloo-{size}") for size in (2, 4)),
        *(pytest.param(mpi_ranks.mpi_ranks, size, id=f"mpi-{size}", marks=needs_mpi) for size in (2, 4)),
    ],
)


@EVERY
def test_every_call_gives_the_same_on_every_transport(ranks, size):
    for rank, found in enumerate(ranks(size, conformance)):
        check_conformance(found, rank, size)


@EVERY
def test_all_ranks_hold_the_same_bits_of_a_sum_that_rounds(ranks, size):
    check_same_bits(ranks(size, same_bits))


@EVERY
def test_a_twin_serves_another_thread_at_the_same_time(ranks, size):
    for rank, found in enumerate(ranks(size, two_threads)):
        check_two_threads(found, rank, size)


def test_alone_sends_nothing():
    world = World(transport=Alone())
    check_conformance(conformance(world), 0, 1)
    check_two_threads(two_threads(world), 0, 1)
    assert world.transport.meter.total == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.all_gather_v(torch.ones(2, 2), "mask"), "shape"),
        (lambda t: t.all_gather_v(torch.ones(2), "mask", [2]), "lengths"),
        (lambda t: t.all_gather_v(torch.ones(2), "mask", [3, 3]), "lengths"),
        (lambda t: t.all_to_all_v([torch.ones(2, 2)] * t.size, "mask"), "shape"),
        (lambda t: t.all_to_all_v([torch.ones(2)] * (t.size + 1), "mask"), "parts"),
        (lambda t: t.all_to_all_v([torch.ones(2), torch.ones(2).int()], "mask"), "dtype"),
        (lambda t: t.all_to_all_v([torch.ones(2)] * t.size, "mask", [2]), "sizes"),
    ],
)
def test_calls_that_make_no_sense_are_refused_before_anything_is_sent(call, words):
    def body(world: World) -> float:
        with pytest.raises(ValueError, match=words):
            call(world.transport)
        return world.transport.meter.total

    assert Simulation(2).run(body) == [0, 0]


class SlowToAdd(float):
    """A count whose addition gives other threads time to come in between."""

    def __radd__(self, other: float) -> float:
        time.sleep(0.001)
        return other + float(self)


def test_threads_book_every_byte():
    meter = ByteMeter()

    def body(world: World) -> None:
        for _ in range(10):
            meter.add("mask", SlowToAdd(3))

    Simulation(4).run(body)
    assert meter.total == 120


@pytest.mark.parametrize("before", [True, False], ids=["before the twin", "with a twin"])
def test_a_failing_rank_ends_the_simulation_with_its_own_error(before):
    def body(world: World) -> None:
        if world.rank == 1 and before:
            raise KeyError("only rank 1")
        twin = world.transport.twin()
        if world.rank == 1:
            raise KeyError("only rank 1")
        twin.barrier()

    with pytest.raises(KeyError, match="only rank 1"):
        Simulation(3).run(body)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system keeps no thread on a core")
@pytest.mark.parametrize("fails", [False, True])
def test_simulated_ranks_share_a_core_and_leave_the_others_to_who_asked(fails):
    def body(world: World) -> tuple[set[int], int]:
        if fails and world.rank == 1:
            raise KeyError("only rank 1")
        return os.sched_getaffinity(0), torch.get_num_threads()

    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError) if fails else contextlib.nullcontext():
            (core, one), *others = Simulation(3).run(body)
            assert len(core) == one == 1 and core <= cores
            assert others == [(core, one)] * 2
        assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, 2)
    finally:
        torch.set_num_threads(threads)


def test_a_simulated_rank_that_does_not_come_is_an_error():
    def body(world: World) -> None:
        if world.rank != 1:
            world.transport.barrier()

    with pytest.raises(TimeoutError, match=r"\[0, 2\]"):
        Simulation(3, timeout=0.2).run(body)


def test_a_simulated_rank_that_sends_another_size_than_told_is_an_error():
    def body(world: World) -> None:
        world.transport.all_to_all_v([torch.ones(2)] * 2, "mask", [3, 3])

    with pytest.raises(RuntimeError, match="sent 2 elements, expected 3"):
        Simulation(2).run(body)


def large_mpi(world: World) -> list[list[float]]:
    """With a low limit sums and broadcasts go in pieces; gathers say what is too large."""
    mpi.LARGEST = 64
    tensor, shared = torch.arange(50.0), torch.full((50,), float(world.rank))
    world.transport.all_reduce(tensor, "gradient")
    world.transport.broadcast(shared, "gradient", source=1)
    for call in (world.transport.all_gather, world.transport.all_gather_v):
        with pytest.raises(ValueError, match=f"rank {world.rank}: a message of 200 bytes, at most 64"):
            call(tensor, "gradient")
    with pytest.raises(ValueError, match=r"cannot add torch\.bool"):
        world.transport.all_reduce(torch.ones(1, dtype=torch.bool), "control")
    return [tensor.tolist(), shared.tolist()]


@needs_mpi
def test_mpi_splits_or_refuses_what_its_counts_cannot_hold():
    assert mpi_ranks.mpi_ranks(2, large_mpi) == [[[2.0 * i for i in range(50)], [1.0] * 50]] * 2


def late_mpi(world: World) -> str:
    """Rank 1 comes to a call only after rank 0 has given up."""
    assert isinstance(world.transport, mpi.MpiTransport)
    hasty = mpi.MpiTransport(world.transport.communicator.Dup(), timeout=0.3)
    said = ""
    if world.rank == 0:
        with pytest.raises(mpi.TransportTimeout) as error:
            hasty.all_gather(torch.ones(3), "gradient")
        said = str(error.value)
    world.transport.barrier()
    if world.rank == 1:
        hasty.all_gather(torch.ones(3), "gradient")  # what rank 0 has sent is still under way
    return said


@needs_mpi
def test_an_mpi_call_without_answer_ends_in_time_and_says_who_waited_for_whom():
    said, _ = mpi_ranks.mpi_ranks(2, late_mpi)
    assert said == "all_gather on rank 0: no answer from rank 1 in 0.3 s"


def place_mpi(world: World) -> list:
    return [world.rank, world.size, world.local_rank, bool(world.node)]


@needs_mpi
def test_mpi_ranks_of_one_host_are_numbered_inside_it():
    assert mpi_ranks.mpi_ranks(3, place_mpi) == [[rank, 3, rank, True] for rank in range(3)]


def failing_mpi(world: World) -> None:
    if world.rank == 1:
        raise KeyError("only rank 1")
    world.transport.barrier()


@needs_mpi
def test_a_failing_mpi_rank_ends_all_ranks():
    with pytest.raises(AssertionError, match="only rank 1"):
        mpi_ranks.mpi_ranks(2, failing_mpi)


def test_without_mpi4py_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(JobError, match=r"install sparsetrain\[mpi\]"):
        mpi.mpi_world()
