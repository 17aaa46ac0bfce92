"""What is wrong with a cluster: a line for each problem that says what to do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from sparsetrain.config.job import Job
from sparsetrain.doctor.examination import Findings
from sparsetrain.doctor.facts import VERSIONS

CLOCK_S = 1.0  # apart: rows and logs of several hosts, and tokens with a time limit, are out of order
SLOW = 5.0  # times less than the median of all ways is not the usual scatter


def problems(job: Job, found: Findings) -> list[str]:
    """Return the problems, the ones that keep ranks from meeting first."""
    lines: list[str] = [*found.silent]
    for finder in (_own, _ways, _loopback, _versions, _clock, _shared, _token, _gpus, _cores, _slow):
        lines += list(dict.fromkeys(finder(job, found)))
    return lines


def name(found: Findings, rank: int) -> str:
    """Return "node2 (rank 1)"."""
    return f"{found.facts[rank]['node']} (rank {rank})"


def differs(found: Findings, value: Callable[[dict[str, Any]], Any]) -> str:
    """Return "A on node1; B on node2" where values are not all the same, "" where they are."""
    groups: dict[str, list[str]] = {}
    for each in found.facts.values():
        nodes = groups.setdefault(str(value(each)), [])
        if each["node"] not in nodes:
            nodes.append(each["node"])
    if len(groups) < 2:
        return ""
    return "; ".join(f"{what} on {', '.join(nodes[:8])}" for what, nodes in groups.items())


def _own(job: Job, found: Findings) -> Iterator[str]:
    for each in found.facts.values():
        for trouble in each["troubles"]:
            there = ", ".join(f"{key} {address}" for key, address in each["interfaces"].items())
            yield f"{trouble}; {each['node']} has {there}: leave cluster.interface out, or give all hosts that name"


def _ways(job: Job, found: Findings) -> Iterator[str]:
    for (start, end), way in sorted(found.ways.items()):
        if "error" in way:
            there = found.facts[end]["address"]
            other = "the other way is open; " if "error" not in found.ways.get((end, start), way) else ""
            yield (
                f"{name(found, start)} does not reach {name(found, end)} at {there}: {way['error']}; {other}open all"
                f" TCP ports between the hosts (firewall of {found.facts[end]['node']}), or name another network"
                " with cluster.interface"
            )


def _loopback(job: Job, found: Findings) -> Iterator[str]:
    if len({each["host"] for each in found.facts.values()}) == 1:
        return
    for rank, each in found.facts.items():
        if each["address"].startswith("127."):
            yield (
                f"{name(found, rank)}: rank 0's address leads to the loopback ({each['address']}); give the address at"
                " which other hosts see it (MASTER_ADDR), or take its name out of 127.* in /etc/hosts"
            )


def _versions(job: Job, found: Findings) -> Iterator[str]:
    for package in ("python", *VERSIONS):
        if said := differs(found, lambda each, package=package: each[package]):
            yield f"{package}: {said}; install the same version on all hosts"
    used = job.cluster.transport == "mpi" or found.who == "mpi"
    if used and (said := differs(found, lambda each: each["mpi"].split(",")[0])):
        yield f'MPI: {said}; install the same on all hosts (pip install "sparsetrain[mpi]")'
    elif used and found.facts and found.facts[0]["mpi"] == "none":
        yield 'MPI: mpi4py is on no host; pip install "sparsetrain[mpi]" brings it and MPICH'


def _clock(job: Job, found: Findings) -> Iterator[str]:
    for rank, each in found.facts.items():
        ahead = each.get("ahead_s")
        if ahead is not None and abs(ahead) > CLOCK_S:
            side = "ahead of" if ahead > 0 else "behind"
            yield f"{name(found, rank)}: its clock is {abs(ahead):.1f} s {side} rank 0's; let NTP (chrony) set both"


def _shared(job: Job, found: Findings) -> Iterator[str]:
    blind = sorted({each["node"] for each in found.facts.values() if each.get("shared") is False})
    if blind:
        ray = " (Ray copies rank 0's files back, without checkpoints)" if found.who == "ray" else ""
        yield f"log.folder: {', '.join(blind)} does not see {found.folder}; put it on a file system that all share{ray}"
    elif not found.folder and found.facts:
        yield f"log.folder: nothing can be written to {job.log.folder} on {found.facts[0]['node']}"


def _token(job: Job, found: Findings) -> Iterator[str]:
    if said := differs(found, lambda each: each["token"]):
        yield f"RAY_AUTH_TOKEN: not the same everywhere (digests: {said}); give all hosts one token"
    elif found.who == "ray" and found.facts and found.facts[0]["token"] == "none":
        yield (
            "RAY_AUTH_TOKEN: Ray runs without one, and whoever reaches its ports can run what he likes; start it with"
            " RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(openssl rand -hex 32) on all hosts"
        )


def _gpus(job: Job, found: Findings) -> Iterator[str]:
    for rank, each in found.facts.items():
        if job.cluster.gpus_per_worker and each["gpus"] == "none":
            yield f"{name(found, rank)}: torch sees no GPU, and cluster.gpus_per_worker is not 0"


def _cores(job: Job, found: Findings) -> Iterator[str]:
    for node in dict.fromkeys(each["node"] for each in found.facts.values()):
        ranks = [each for each in found.facts.values() if each["node"] == node]
        wanted = len(ranks) * max(1, job.cluster.threads_per_worker)
        if wanted > ranks[0]["cores"] and found.who != "ray":
            yield (
                f"{node}: {len(ranks)} rank(s) of {max(1, job.cluster.threads_per_worker)} thread(s) on"
                f" {ranks[0]['cores']} core(s); start fewer there, or give them more (srun --cpus-per-task,"
                " mpiexec --bind-to none)"
            )


def _slow(job: Job, found: Findings) -> Iterator[str]:
    nodes = {rank: each["node"] for rank, each in found.facts.items()}
    apart = {pair: way for pair, way in found.ways.items() if nodes[pair[0]] != nodes[pair[1]]}
    rates = {pair: way["mbit_s"] for pair, way in apart.items() if "mbit_s" in way}
    usual = statistics.median(rates.values()) if len(rates) > 2 else 0.0
    for (start, end), rate in sorted(rates.items()):
        if rate * SLOW < usual:
            yield (
                f"{name(found, start)} to {name(found, end)}: {rate:.0f} Mbit/s, where {usual:.0f} is usual here; look"
                " at the card, cable and switch port of the host that all slow ways share"
            )
