"""Hosts made of network namespaces: they reach each other at the rate that was asked for, and leave nothing behind."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from sparsetrain.bench import links, namespaces
from sparsetrain.bench.hosts import Counters, Hosts, HostsUnavailable

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]
SIZE = 4_000_000
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    with connection:
        count = 0
        while data := connection.recv(1 << 18):
            count += len(data)
        connection.sendall(str(count).encode())
"""
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 5000), timeout=30) as connection:
    start = time.monotonic()
    connection.sendall(bytes(int(sys.argv[2])))
    connection.shutdown(socket.SHUT_WR)
    print(connection.recv(100).decode(), time.monotonic() - start)
"""
COUNT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as at:
    at.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    at.bind((sys.argv[1], 5002))
    at.settimeout(3)
    print("ready", flush=True)
    count = 0
    try:
        while at.recv(100) != b"end":
            count += 1
    except TimeoutError:
        pass
    print(count)
"""
SHOUT = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
    for number in range(int(sys.argv[2])):
        to.sendto(b"word", (sys.argv[1], 5002))
        if number % 20 == 0:
            time.sleep(0.002)
    time.sleep(0.2)
    for _ in range(20):
        to.sendto(b"end", (sys.argv[1], 5002))
"""
REDUCE = """
import datetime, sys
import torch
import torch.distributed as dist
rank, address = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"tcp://{address}:5001", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=30)
)
value = torch.full((50_000,), rank + 1.0)
dist.all_reduce(value)
print(value.unique().tolist(), flush=True)
dist.barrier()
dist.destroy_process_group()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
HOLD = """
import signal, sys, time
from sparsetrain.bench.hosts import Hosts
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
signal.signal(signal.SIGINT, signal.default_int_handler)
with Hosts(count=2) as hosts:
    inner = hosts.start(1, [sys.executable, "-c", "import time; time.sleep(60)"])
    print(inner.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module", autouse=True)
def possible():
    if reason := Hosts.missing():
        pytest.skip(reason)


def mine(pid: int) -> list[str]:
    return [name for name in namespaces.names() if name.startswith(f"st{pid}x")]


def cards() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def send(hosts: Hosts, size: int) -> tuple[int, float]:
    """Return the bytes that host 1 received from host 0, and the seconds from first byte to answer."""
    listen = [sys.executable, "-c", LISTEN, hosts.address(1)]
    with hosts.start(1, listen, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == "ready\n"
        sender = [sys.executable, "-c", SEND, hosts.address(1), str(size)]
        with hosts.start(0, sender, stdout=subprocess.PIPE) as client:
            count, seconds = client.communicate(timeout=60)[0].split()
    return int(count), float(seconds)


@contextlib.contextmanager
def holder():
    """Yield a process that holds two hosts, and the id of one that sleeps inside; both are gone afterwards."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()
            namespaces.sweep()


def test_transfer_obeys_the_rate_and_is_counted():
    outside = cards()
    with Hosts(count=2, rate="100mbit") as hosts:
        before = [hosts.counters(host) for host in range(2)]
        count, seconds = send(hosts, SIZE)
        sender, receiver = (hosts.counters(host) - before[host] for host in range(2))
        assert cards() == outside
    assert count == SIZE
    assert SIZE * 8 / 100e6 <= seconds <= 2 * SIZE * 8 / 100e6
    assert SIZE <= sender.sent_bytes <= 1.1 * SIZE
    assert SIZE <= receiver.received_bytes <= 1.1 * SIZE
    assert sender.received_bytes < 0.1 * SIZE > receiver.sent_bytes
    assert sender.sent_packets > 0 < receiver.received_packets
    assert not mine(os.getpid())


@pytest.mark.parametrize(("rate", "delay"), [("500mbit", None), (None, None), ("500mbit", "1ms")])
def test_a_rate_can_change_while_hosts_live(rate, delay):
    try:
        with Hosts(count=2, rate=rate, delay=delay) as hosts:
            send(hosts, SIZE)
            hosts.reshape("50mbit")
            assert SIZE * 8 / 50e6 <= send(hosts, SIZE)[1] <= 3 * SIZE * 8 / 50e6
            hosts.reshape("none")
            assert send(hosts, SIZE)[1] < SIZE * 8 / 50e6
    except HostsUnavailable as error:
        if "netem" not in str(error):
            raise
        pytest.skip(str(error))


def test_the_rate_of_one_host_can_change_alone():
    with Hosts(count=3, rate="500mbit") as hosts:
        hosts.reshape("50mbit", 2)
        assert send(hosts, SIZE)[1] < SIZE * 8 / 50e6
        hosts.reshape("50mbit", 1)
        assert send(hosts, SIZE)[1] >= SIZE * 8 / 50e6
        hosts.reshape("500mbit")
        assert send(hosts, SIZE)[1] < SIZE * 8 / 50e6


def test_a_host_is_cut_off_and_comes_back():
    with Hosts(count=2) as hosts:
        hosts.cut(1)
        sender = [sys.executable, "-c", SEND, hosts.address(1), "1"]
        with hosts.start(0, sender, stderr=subprocess.PIPE) as process:
            assert "No route to host" in process.communicate(timeout=60)[1]
        hosts.mend(1)
        assert send(hosts, 1000)[0] == 1000


def arrived(hosts: Hosts, source: int, count: int) -> int:
    """Return how many of so many datagrams from a host come to host 1."""
    to = hosts.address(1)
    with hosts.start(1, [sys.executable, "-c", COUNT, to], stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
        with hosts.start(source, [sys.executable, "-c", SHOUT, to, str(count)]) as sender:
            assert sender.wait(timeout=30) == 0
        return int(listener.communicate(timeout=30)[0])


def test_packets_are_lost_from_whom_and_as_often_as_wanted():
    with Hosts(count=3) as hosts:
        try:
            hosts.lose(1, 100, source=2)
        except HostsUnavailable as error:
            pytest.skip(str(error))
        assert arrived(hosts, 2, 200) == 0 and arrived(hosts, 0, 200) == 200
        hosts.lose(1, 20)
        assert 1500 < arrived(hosts, 0, 2000) < 1700  # 18 of these are a standard deviation
        assert send(hosts, 1000)[0] == 1000  # TCP sends them again
        hosts.lose(1, 0)
        assert arrived(hosts, 0, 500) == 500
        with pytest.raises(ValueError, match="percent 101"):
            hosts.lose(1, 101)


def test_a_killed_host_has_no_process():
    stubborn = [sys.executable, "-c", STUBBORN]
    with Hosts(count=2) as hosts, hosts.start(0, stubborn, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        assert hosts.inside(0) == {process.pid}
        hosts.kill(0)
        assert hosts.inside(0) == set()
        assert process.wait(5) == -signal.SIGKILL


def test_two_sets_of_hosts_do_not_meet():
    with Hosts(count=2) as one, Hosts(count=3) as other:
        assert one.address(0) == other.address(0) == "10.88.0.1"
        quiet = other.counters(1)
        assert send(one, 100_000)[0] == 100_000
        assert (other.counters(1) - quiet).received_bytes < 1000
        assert send(other, 100_000)[0] == 100_000


def test_gloo_reduces_across_hosts():
    with Hosts(count=2) as hosts:
        env = {**os.environ, "GLOO_SOCKET_IFNAME": hosts.interface}
        script = [sys.executable, "-c", REDUCE]
        with contextlib.ExitStack() as stack:
            ranks = [
                stack.enter_context(
                    hosts.start(rank, [*script, str(rank), hosts.address(0)], env, stdout=subprocess.PIPE)
                )
                for rank in range(2)
            ]
            assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["[3.0]\n", "[3.0]\n"]
        assert hosts.counters(1).sent_bytes >= 50_000 * 4  # each of two ranks sends half, then the half it summed


def test_delay_is_paid_in_both_directions():
    try:
        with Hosts(count=2, rate="1gbit", delay="20ms") as hosts:
            assert send(hosts, 1)[1] >= 0.04
    except HostsUnavailable as error:
        assert not mine(os.getpid())
        if "netem" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error):
    hosts = Hosts(count=2)
    with pytest.raises(error), hosts:
        process = hosts.start(0, [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n"
        assert len(mine(os.getpid())) == 3
        raise error
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert not mine(os.getpid())
    hosts.close()
    with pytest.raises(RuntimeError, match="inside `with`"):
        hosts.address(0)


def test_nothing_is_left_of_grandchildren():
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    with Hosts(count=1) as hosts, hosts.start(0, [sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        grandchild = int(process.stdout.readline())
        process.wait(timeout=30)
        assert alive(grandchild)
        hosts.close()
    assert not alive(grandchild)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(number):
    with holder() as (process, inner):
        assert len(mine(process.pid)) == 3 and alive(inner)
        process.send_signal(number)
        assert process.wait(timeout=20) != 0
        assert not mine(process.pid) and not alive(inner)


def test_what_a_killed_owner_left_is_swept():
    with holder() as (process, inner):
        with Hosts(count=1):
            assert len(mine(process.pid)) == 3 and alive(inner)  # a living owner's hosts stay
        process.kill()
        process.wait(timeout=20)
        left = mine(process.pid)
        assert len(left) == 3 and alive(inner)
        assert namespaces.sweep() == left
        assert not mine(process.pid) and not alive(inner)


@pytest.fixture
def heeds_interrupts():
    """Ctrl-C as a terminal has it: a process that was started in the background ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_signal_while_hosts_are_made_comes_afterwards(monkeypatch):
    steps = []
    bring_up, wait_until_up = links.bring_up, links.wait_until_up

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        bring_up(*given)

    def last(*given):
        wait_until_up(*given)
        steps.append(given)

    monkeypatch.setattr(links, "bring_up", interrupted)
    monkeypatch.setattr(links, "wait_until_up", last)
    with pytest.raises(KeyboardInterrupt), Hosts(count=1):
        raise AssertionError("entered in spite of Ctrl-C")
    assert len(steps) == 2  # one cable has two ends: all was made, and then removed
    assert not mine(os.getpid())


def test_a_signal_while_hosts_are_removed_comes_afterwards(monkeypatch):
    left: list[list[str]] = []  # what is there when the caller's own handler is asked
    former = signal.signal(signal.SIGTERM, lambda number, frame: left.append(mine(os.getpid())))
    remove = namespaces.remove

    def interrupted(*given):
        signal.raise_signal(signal.SIGTERM)
        remove(*given)

    try:
        with Hosts(count=1):
            monkeypatch.setattr(namespaces, "remove", interrupted)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert left == [[]]


def test_the_handlers_of_the_caller_come_back():
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with Hosts(count=1):
        assert signal.getsignal(signal.SIGTERM) != former[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == former


def test_a_refusal_leaves_nothing(monkeypatch):
    monkeypatch.setattr("sparsetrain.bench.hosts.Hosts.interface", "a-name-that-is-too-long")
    assert "a-name-that-is-too-long" in Hosts.missing()
    assert not mine(os.getpid())


def test_an_open_host_knows_its_bounds():
    with Hosts(count=1) as hosts:
        for wrong in (-1, 1):
            with pytest.raises(IndexError, match="of 1"):
                hosts.address(wrong)
        with pytest.raises(RuntimeError, match="already"):
            hosts.__enter__()
        assert isinstance(hosts.counters(0), Counters)


@pytest.mark.timeout(60)
def test_a_rank_ends_with_its_driver_and_removes_what_that_left(tmp_path):
    """A driver that is killed can end nobody."""
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "meet").touch()
    driver = subprocess.Popen(["sleep", "60"])
    code = "import pathlib, sys, time; from sparsetrain.bench.rank import end_with\n"
    code += "end_with(int(sys.argv[1]), pathlib.Path(sys.argv[2])); print('there', flush=True); time.sleep(50)"
    words = [sys.executable, "-c", code, str(driver.pid), str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == "there\n"
        driver.kill()
        driver.wait()
        assert rank.wait(20) == 1 and not folder.exists()
