"""Every problem that the examination of a cluster knows is one line, and a healthy cluster has none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from findings import healthy

from sparsetrain.config.load import parse
from sparsetrain.doctor.examination import rounds
from sparsetrain.doctor.problems import problems
from sparsetrain.doctor.table import page

JOB = parse({"name": "one"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"torch": "2.12.0"}, "torch: 2.13.0 on node0, node1; 2.12.0 on node2; install the same version on all hosts"),
        ({"python": "3.11.7"}, "python: 3.12.1 on node0, node1; 3.11.7 on node2; install"),
        ({"ahead_s": -3.25}, "node2 (rank 2): its clock is 3.2 s behind rank 0's; let NTP"),
        ({"shared": False}, "log.folder: node2 does not see /shared; put it on a file system that all share"),
        ({"token": "none"}, "RAY_AUTH_TOKEN: not the same everywhere (digests: 12ab on node0, node1; none on node2)"),
        ({"address": "127.0.1.1"}, "node2 (rank 2): rank 0's address leads to the loopback (127.0.1.1)"),
        ({"cores": 0}, "node2: 1 rank(s) of 1 thread(s) on 0 core(s); start fewer there"),
        ({"troubles": ["cluster.interface: no x"]}, "cluster.interface: no x; node2 has lo 127.0.0.1, eth0 10.0.0.3:"),
    ],
)
def test_a_host_that_differs_is_one_line(changes: dict[str, Any], said: str) -> None:
    (line,) = problems(JOB, healthy(**changes))
    assert line.startswith(said)


def test_nothing_is_wrong_with_equal_hosts_and_memory_only_marked() -> None:
    assert problems(JOB, healthy()) == []
    shown = page(healthy(memory_gib=32.0), [])
    assert "memory (GiB) *" in shown and "cores *" not in shown and shown.endswith("no problem found")


def test_a_way_that_is_closed_and_one_that_is_slow() -> None:
    found = healthy()
    found.ways[2, 1] = {"error": "timed out"}
    found.ways[0, 2]["mbit_s"] = 9.0
    closed, slow = problems(JOB, found)
    assert closed.startswith("node2 (rank 2) does not reach node1 (rank 1) at 10.0.0.2: timed out; the other way is")
    assert slow.startswith("node0 (rank 0) to node2 (rank 2): 9 Mbit/s, where 900 is usual here")
    assert "timed out" in page(found, [closed, slow]) and "2 problem(s):" in page(found, [closed, slow])


def test_ray_without_a_token_and_gpus_that_are_asked_for() -> None:
    found = healthy("ray")
    for each in found.facts.values():
        each["token"] = "none"
    (line,) = problems(JOB, found)
    assert line.startswith("RAY_AUTH_TOKEN: Ray runs without one")
    wants = parse({"name": "one", "cluster": {"gpus_per_worker": 1}})
    (line,) = problems(wants, healthy(gpus="none", **{}))[:1]
    assert "torch sees no GPU" in line


def test_mpi_has_to_be_there_where_it_is_used() -> None:
    wants = parse({"name": "one", "cluster": {"transport": "mpi"}})
    (line,) = problems(wants, healthy())
    assert line.startswith("MPI: mpi4py is on no host")
    (line,) = problems(wants, healthy(mpi="mpi4py 4.1.2, /usr/bin/mpiexec"))
    assert line.startswith("MPI: none on node0, node1; mpi4py 4.1.2 on node2")


@pytest.mark.parametrize("count", range(1, 8))
def test_each_two_meet_once_and_nobody_is_in_two_pairs_at_once(count: int) -> None:
    ranks = list(range(count))
    made = list(rounds(ranks))
    assert sorted(itertools.chain(*made)) == list(itertools.combinations(ranks, 2))
    for pairs in made:
        assert len(set(itertools.chain(*pairs))) == 2 * len(pairs)
