from __future__ import annotations

import socket

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.worker import interface

FOUND = {"lo": "127.0.0.1", "net0": "10.1.0.2", "net1": "10.2.0.2"}


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Route 10.1/16 over net0, 10.2/16 over net1 and 127/8 over the loopback."""

    def address(master: str) -> str:
        return master if master.startswith("127.") else ".".join([*master.split(".")[:2], "0", "2"])

    monkeypatch.setattr(interface, "local_address", address)


@pytest.mark.usefixtures("routes")
@pytest.mark.parametrize(
    ("master", "name"),
    [("10.1.0.9", "net0"), ("10.2.0.9", "net1"), ("127.0.0.1", "lo"), ("127.0.1.1", "lo"), ("10.3.0.9", None)],
)
def test_the_interface_that_routes_to_the_master(master: str, name: str | None) -> None:
    assert interface.choose(master, None, FOUND) == name


def test_a_wanted_interface_overrides_the_route() -> None:
    assert interface.choose("127.0.0.1", "net1", FOUND) == "net1"


def test_an_unknown_interface_names_those_there_are() -> None:
    with pytest.raises(JobError, match=r"^cluster\.interface: .*'net7'.*available: .*net0, net1.*did you mean 'net"):
        interface.choose("127.0.0.1", "net7", FOUND)


@pytest.mark.usefixtures("routes")
def test_the_loopback_is_refused_where_rank_0_is_elsewhere() -> None:
    with pytest.raises(JobError, match=r"^cluster\.interface: 'lo' on .* 127\.0\.0\.1, .* rank 0 is at 10\.1\.0\.9$"):
        interface.choose("10.1.0.9", "lo", {"lo": "127.0.0.1", **FOUND})
    assert interface.choose("127.0.1.1", "lo", FOUND) == "lo"


def test_this_machine_reaches_itself_over_its_loopback() -> None:
    found = interface.interfaces()
    assert "127.0.0.1" in found.values()
    name = interface.choose("127.0.0.1", None, found)
    assert name in {name for _, name in socket.if_nameindex()}
    assert found[str(name)].startswith("127.")


def test_a_master_that_has_no_address() -> None:
    with pytest.raises(JobError, match=r"^MASTER_ADDR: cannot reach"):
        interface.local_address("no-such-host.invalid")


def test_both_libraries_are_told() -> None:
    assert interface.variables("net0") == {"GLOO_SOCKET_IFNAME": "net0", "NCCL_SOCKET_IFNAME": "net0"}
    assert interface.variables(None) == {}
