"""The examination by real ranks: on the loopback, on a Ray cluster, and on hosts of which some are not in order."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from commands import REPOSITORY, Desk

from sparsetrain.bench.hosts import Hosts
from sparsetrain.bench.namespaces import command

pytestmark = [pytest.mark.timeout(150), pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
LAUNCH = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sparsetrain.doctor")
# Every host has its own name, as on a real cluster.
IN_HOST = 'hostname "$1" && shift && exec "$@"'


def test_two_ranks_on_this_machine(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    code, out, err = desk.call(*LAUNCH, "job.yaml", "cluster.start_timeout=60", "--json")
    found = json.loads(out)
    assert (code, found["problems"], found["launcher"]) == (0, [], "torchrun"), err
    assert [(rank["address"], rank["shared"], rank["torch"]) for rank in found["ranks"]] == [
        ("127.0.0.1", True, found["ranks"][0]["torch"])
    ] * 2
    assert [(way["from"], way["to"]) for way in found["ways"]] == [(0, 1), (1, 0)]
    assert all(0 < way["latency_ms"] < 100 and way["mbit_s"] > 10 for way in found["ways"])
    assert not list(tmp_path.glob(".doctor-*")) and not (tmp_path / "runs").exists()
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


def test_a_mistake_is_one_line(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    for words, said in (
        (("doctor", "--cluster"), "doctor: --cluster needs a cluster: name one of Ray"),
        (("doctor", "job.yaml"), "doctor: takes no JOB without --cluster"),
        (("doctor", "--cluster", "cluster.address=127.0.0.1:1"), "cluster.address: no Ray cluster answers"),
    ):
        code, out, err = desk.call("sparsetrain", *words)
        assert (code, out) == (2, "") and err.startswith(said) and err.count("\n") == 1
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    verb = '[sys.executable, "-m", "sparsetrain", "doctor", "--cluster", *sys.argv[1:]]'
    text = (REPOSITORY / "tests/e2e/two_nodes.py").read_text()
    (tmp_path / "two_main.py").write_text(
        text.replace('[sys.executable, "-m", "sparsetrain", "run", *sys.argv[1:]]', verb)
    )
    code, out, err = desk.call("two_main", "job.yaml", "--json", timeout=120)
    assert code == 0, out + err
    found = json.loads(out[out.index("{\n") :])
    assert (found["launcher"], found["problems"], len(found["ranks"]), len(found["ways"])) == ("ray", [], 2, 2)
    digests = {rank["token"] for rank in found["ranks"]}
    assert len(digests) == 1 and len(digests.pop()) == 8
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


def start(desk: Desk, hosts: Hosts, *settings: str) -> list[subprocess.Popen[str]]:
    started = []
    for rank in range(hosts.count):
        place = {"RANK": str(rank), "WORLD_SIZE": str(hosts.count), "LOCAL_RANK": "0"}
        meet = {"MASTER_ADDR": hosts.address(0), "MASTER_PORT": "29555"}
        program = [sys.executable, "-m", "sparsetrain.doctor", str(desk.folder / "job.yaml"), *settings]
        inside = ["unshare", "--uts", "sh", "-c", IN_HOST, "sh", f"host{rank}", *program]
        env = {**desk.env(), **place, **meet}
        started.append(hosts.start(rank, inside, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return started


def drop_calls(hosts: Hosts, host: int, source: int) -> None:
    """Let a firewall on `host` drop the calls that come from `source`; what host calls itself is answered."""
    nft = ("ip", "netns", "exec", hosts.path(host).name, "nft", "add")
    command(*nft, "table", "inet", "wall")
    command(*nft, "chain", "inet", "wall", "in", "{ type filter hook input priority 0; }")
    new = ("tcp", "flags", "&", "(syn|ack)", "==", "syn")
    command(*nft, "rule", "inet", "wall", "in", "ip", "saddr", hosts.address(source), *new, "drop")


netns = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.skipif(bool(Hosts.missing()), reason=str(Hosts.missing())),
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed"),
]


class TestHosts:
    pytestmark = netns

    def test_a_closed_port_and_another_interface_are_named(self, tmp_path: pathlib.Path) -> None:
        desk = Desk(tmp_path)
        with Hosts(3) as hosts:
            drop_calls(hosts, host=1, source=2)
            for words in (("down",), ("name", "net7"), ("up",)):
                command("ip", "-n", hosts.path(2).name, "link", "set", "net7" if words == ("up",) else "eth0", *words)
            ranks = start(desk, hosts, "cluster.interface=eth0", "cluster.start_timeout=60")
            (out, err), *_ = [rank.communicate(timeout=120) for rank in ranks]
            assert [rank.returncode for rank in ranks] == [1, 0, 0], err
        own, closed = (line.removeprefix("- ") for line in out[out.index("2 problem(s):") :].splitlines()[1:])
        assert own.startswith("cluster.interface: no network interface 'eth0' on host2; available: lo, net7")
        wanted = f"host2 (rank 2) does not reach host1 (rank 1) at {address(1)}: timed out; the other way is open; open"
        assert closed.startswith(wanted)
        assert "interface *" in out and "3 of 3 rank(s) by torchrun" in out
        assert desk.left() == {}
        shutil.rmtree(desk.temporary)

    def test_a_host_that_does_not_reach_the_first_one_says_so_and_is_named(self, tmp_path: pathlib.Path) -> None:
        desk = Desk(tmp_path)
        with Hosts(2) as hosts:
            drop_calls(hosts, host=0, source=1)
            ranks = start(desk, hosts, "cluster.start_timeout=20")
            (out, _), (_, said) = [rank.communicate(timeout=120) for rank in ranks]
        assert ranks[0].returncode == 1 and "- rank 1 has not come in 20 s" in out
        assert ranks[1].returncode == 1 and f"rank 1 on host1 does not reach rank 0 at {address(0)}:29555" in said
        assert desk.left() == {}
        shutil.rmtree(desk.temporary)


def address(host: int) -> str:
    return f"10.88.0.{host + 1}"
