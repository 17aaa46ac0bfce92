"""What becomes of a run on several hosts when cables, nodes and drivers fail: it ends right, or says why, in time.

The longer half runs where SPARSETRAIN_CHAOS is set: `SPARSETRAIN_CHAOS=all python -m pytest -s tests/chaos`. With `-s`
each test prints how long it took from the fault to the next step.
"""

from __future__ import annotations

import os
import pathlib
import re
import time
from collections.abc import Generator

import pytest
from networks import Cluster, Run, cluster, missing, wait

from sparsetrain.bench.hosts import HostsUnavailable

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.netns,
]
longer = pytest.mark.skipif(not os.environ.get("SPARSETRAIN_CHAOS"), reason="runs where SPARSETRAIN_CHAOS is set")
JOB = ("log.every=1", "model.name=slowly:Slow", "cluster.strategy=SPREAD", "cluster.collective_timeout=8")
BATCH = 4  # samples of a worker and step


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("networks"), 4) as found:
        yield found


@pytest.fixture
def four(made: Cluster) -> Generator[Cluster]:
    """Four hosts of which three have room for a worker, after every fault as whole as before."""
    made.whole()
    yield made
    made.calm()


def begun(four: Cluster, name: str, workers: int | str, steps: int, *overrides: str) -> Run:
    run = four.run(name, *JOB, f"cluster.workers={workers}", f"train.steps={steps}", *overrides)
    run.reach(3)
    return run


def told(what: str, seconds: float) -> None:
    print(f"\n{what}: {seconds:.1f} s to the next step")


def test_bad_weather_costs_time_and_nothing_else(four: Cluster) -> None:
    run = begun(four, "weather", 3, 30)
    host = four.at(run, 1)
    four.hosts.cut(host)
    time.sleep(1.5)
    four.hosts.mend(host)
    told("a cable pulled for 1.5 s", run.onward())
    four.hosts.reshape("1mbit", host)
    told("a link of 1 Mbit/s", run.onward())
    four.hosts.reshape("none", host)
    try:
        four.hosts.lose(host, 5)
        told("5 % of packets lost", run.onward())
    except HostsUnavailable as error:
        print(error)
    run.right(30, 3 * BATCH)
    assert run.incidents() == []


def test_others_go_on_where_rank_0_is_cut_off_and_it_writes_nothing_when_it_is_back(four: Cluster) -> None:
    run = begun(four, "cut", 2, 30, "checkpoint.every=5")
    host = four.at(run, 0)
    four.hosts.cut(host)
    told("the host of rank 0 cut off, another has room", run.onward())
    assert four.at(run, 0) != host != four.at(run, 1)
    assert four.workers(host)  # it knows nothing yet
    four.hosts.mend(host)
    wait(lambda: not four.workers(host), 30)
    run.right(30, 2 * BATCH)
    (incident,) = run.incidents()
    assert (incident["from"], incident["workers"]) == ("memory", 2)
    assert f"on node{host} " in incident["cause"]


def test_a_run_shrinks_when_a_node_dies_and_grows_when_one_comes(four: Cluster) -> None:
    run = begun(four, "elastic", "{min: 2, max: 3}", 60)
    wait(lambda: len(four.placed(run)) == 3, 60, run.said)  # it may begin with two
    run.onward()

    def last(workers: int) -> bool:
        return [each["workers"] for each in run.incidents()][-1:] == [workers]

    host = four.at(run, 2)
    four.hosts.kill(host)
    began = time.monotonic()
    wait(lambda: last(2), 60, run.said)  # before there is room again
    told("a node killed, nowhere is room: 3 to 2 workers", time.monotonic() - began)
    four.whole()
    began = time.monotonic()
    wait(lambda: last(3), 60, run.said)
    told("a node started, 2 to 3 workers", time.monotonic() - began)
    run.right(60, 3 * BATCH)
    found = [(each["workers"], each["from"]) for each in run.incidents()]
    assert found[-2:] == [(2, "memory"), (3, "memory")] and len(found) <= 3


def test_a_loss_that_nobody_makes_up_for_ends_the_run_and_is_named(four: Cluster) -> None:
    run = begun(four, "noroom", 3, 100, "cluster.start_timeout=12")
    host = four.at(run, 1)
    four.hosts.kill(host)
    assert run.end(60) == 1
    line = run.said()[run.said().rindex("rank 1 on ") :].split("\n")[0]
    assert line.startswith(f"rank 1 on node{host} (node ") and "its process is gone" in line
    assert line.endswith("[cluster.start_timeout: 2 of 3 workers were up after 12 s]")
    assert four.desk.run_json("noroom")["status"] == "failed"


def test_workers_end_with_their_driver_and_the_run_resumes_bit_for_bit(four: Cluster) -> None:
    undisturbed = begun(four, "undisturbed", 3, 12, "checkpoint.every=5")
    undisturbed.right(12, 3 * BATCH)
    run = begun(four, "driver", 3, 12, "checkpoint.every=5")
    run.reach(8)
    run.process.kill()
    wait(lambda: not any(four.workers(host) for host in range(4)), 20)
    again = four.run("driver", verb="resume")
    again.right(12, 3 * BATCH)
    assert again.losses() == undisturbed.losses()
    for each in (again, undisturbed):
        assert four.desk.run_json(each.name)["result"]["steps"] == 12
    digests = [four.desk.run_json(each.name)["result"]["weights_digest"] for each in (again, undisturbed)]
    assert digests[0] == digests[1]


def test_an_interface_that_others_cannot_reach_is_refused(four: Cluster) -> None:
    run = four.run("loopback", *JOB, "cluster.interface=lo")
    assert run.end(60) == 2
    assert "\ncluster.interface: 'lo' on node" in run.said()


@longer
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_node_is_made_up_for_where_another_has_room(four: Cluster, rank: int) -> None:
    run = begun(four, f"spare{rank}", 2, 30)
    four.hosts.kill(four.at(run, rank))
    told(f"the node of rank {rank} killed, another has room", run.onward())
    run.right(30, 2 * BATCH)
    assert [(each["workers"], each["from"]) for each in run.incidents()] == [(2, "memory")]


@longer
def test_a_node_that_dies_while_the_ranks_meet_is_made_up_for(four: Cluster) -> None:
    run = four.run("meeting", *JOB, "cluster.workers=2", "train.steps=10")
    wait(lambda: four.placed(run) != [], 60, run.said)
    four.hosts.kill(four.at(run, 1))
    told("a node killed while the ranks meet", run.reach(1))
    run.right(10, 2 * BATCH)
    assert [each["workers"] for each in run.incidents()] == [2]


@longer
def test_ranks_that_no_longer_reach_each_other_end_the_run(four: Cluster) -> None:
    run = begun(four, "parted", 3, 100)
    lose_all(four, 2, source=3)
    began = time.monotonic()
    assert run.end(90) == 1
    print(f"\nends {time.monotonic() - began:.1f} s after two of three ranks have lost each other")
    assert " failed: PeerLost: " in run.said() and "[3 times without a step between]" in run.said()


@longer
def test_ranks_that_cannot_meet_end_the_run(four: Cluster) -> None:
    lose_all(four, 2, source=3)
    run = four.run("unmet", *JOB, "cluster.workers=3")
    assert run.end(120) == 1
    assert re.search(r"rank \d on node\d .* failed: .*the ranks do not meet", run.said())


@longer
def test_a_driver_that_is_cut_off_says_whom_it_lost(four: Cluster) -> None:
    run = begun(four, "alone", 2, 1000, "cluster.start_timeout=15")
    four.hosts.cut(0)
    began = time.monotonic()
    assert run.end(60) == 1
    print(f"\nends {time.monotonic() - began:.1f} s after the driver's host is cut off")
    assert " on node" in run.said() and "its process is gone" in run.said()
    four.hosts.mend(0)
    wait(lambda: not any(four.workers(host) for host in range(4)), 60)


@longer
def test_workers_end_when_the_head_and_the_driver_are_gone(tmp_path: pathlib.Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path, 3) as three:
        begun(three, "headless", 2, 1000)
        three.hosts.kill(0)
        began = time.monotonic()
        wait(lambda: not any(three.workers(host) for host in range(3)), 120)
        assert not any(three.workers(host) for host in range(3))
        print(f"\nworkers are gone {time.monotonic() - began:.1f} s after the head's host")


def lose_all(four: Cluster, host: int, source: int) -> None:
    """Let a host get nothing from another. Skips where this machine cannot."""
    try:
        four.hosts.lose(host, 100, source)
    except HostsUnavailable as error:
        pytest.skip(str(error))
