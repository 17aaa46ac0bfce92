"""Where ranks meet that nobody tells an address: the first one of rank 0 that all of them reach."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.worker import mpi_ranks

NOWHERE = "127.0.0.9"  # rank 0 listens there, and the other rank is told that nobody does


@pytest.mark.parametrize("key", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_an_mpiexec_of_another_mpi_is_told_and_does_not_train_many_times(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(key, "2")
    monkeypatch.setattr(mpi_ranks, "mpi_world", lambda timeout: World())
    with pytest.raises(JobError, match=f"^{key}: says 2 ranks where mpi4py finds 1: mpiexec is of another MPI"):
        mpi_ranks.find_place(load_job("quickstart", ()))


def ranks(found: dict[str, str], wanted: str | None = None) -> list[tuple[str, int, bool]]:
    def body(world: World) -> tuple[str, int, bool]:
        address, port, listener = mpi_ranks.meet(world.transport, wanted, found)
        if listener is not None:
            assert listener.getsockname() == (address, port)
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):  # nobody's question waits there for the store
                listener.accept()
            listener.close()
        return address, port, listener is not None

    return Simulation(2).run(body)


def test_ranks_of_one_host_meet_on_its_loopback() -> None:
    (address, port, serves), (other, same, waits) = ranks({"eth0": "192.0.2.1", "lo": "127.0.0.1"})
    assert address == other == "127.0.0.1" and port == same > 0 and serves and not waits


def test_the_interface_that_the_job_names_is_the_only_one() -> None:
    (address, *_), (other, *_) = ranks({"lo": "127.0.0.1", "lo1": "127.0.0.2"}, wanted="lo1")
    assert address == other == "127.0.0.2"


def test_an_address_that_one_rank_does_not_reach_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    reaches = mpi_ranks._reaches
    monkeypatch.setattr(mpi_ranks, "_reaches", lambda address, port: address != NOWHERE and reaches(address, port))
    (address, *_), (other, *_) = ranks({"a": NOWHERE, "lo": "127.0.0.10"})
    assert address == other == "127.0.0.10"


def test_ranks_without_a_common_address_say_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_ranks, "_reaches", lambda address, port: False)
    with pytest.raises(Exception, match=r"cluster\.interface: no address of rank 0 is reached by all ranks; tried 127"):
        ranks({"lo": "127.0.0.1"})


def test_ranks_of_several_hosts_do_not_meet_on_a_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["one", "two"])
    monkeypatch.setattr(socket, "gethostname", lambda: next(names))

    def body(world: World) -> Any:
        with pytest.raises(JobError, match=r"tried none on 2 host\(s\)"):
            mpi_ranks.meet(world.transport, None, {"lo": "127.0.0.1"})

    Simulation(2).run(body)
