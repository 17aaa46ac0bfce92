"""A Ray cluster over several hosts, each a network namespace of its own, whose networks and nodes can be spoiled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

from commands import Desk

from sparsetrain.bench import namespaces
from sparsetrain.bench.hosts import Hosts, HostsUnavailable
from sparsetrain.track.jsonl import read

PORT = 6379
STORE = 80 << 20  # bytes; the smallest that Ray takes
# A dead node is noticed after some 4 s; by default it takes 18.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# A host has a name of its own: it shall be told from the others in what is printed.
IN_HOST = 'hostname "$1" && cd "$2" && shift 2 && exec "$@"'


@dataclasses.dataclass
class Cluster:
    """Hosts with a Ray node each. Host 0 has the head and the driver and room for no worker, the others for one."""

    desk: Desk
    hosts: Hosts
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(32))
    nodes: dict[int, subprocess.Popen[str]] = dataclasses.field(default_factory=dict)
    runs: list[Run] = dataclasses.field(default_factory=list)

    def env(self) -> dict[str, str]:
        """Return the environment of all programs in the hosts."""
        return {**self.desk.env(), **HEALTH, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def program(self, host: int, *arguments: str, to: pathlib.Path) -> subprocess.Popen[str]:
        """Start `python -m ...` in a host, in the desk's folder; what it prints goes to the file `to`."""
        inside = ["unshare", "--uts", "sh", "-c", IN_HOST, "sh", f"node{host}", str(self.desk.folder)]
        with to.open("w") as file:
            program = [*inside, sys.executable, "-m", *arguments]
            return self.hosts.start(host, program, env=self.env(), stdout=file, stderr=subprocess.STDOUT)

    def node(self, host: int) -> None:
        """Start the Ray node of a host; the head is up when this returns."""
        if host:
            where = ["--address", f"{self.hosts.address(0)}:{PORT}", "--num-cpus=1"]
        else:
            where = ["--head", "--port", str(PORT), "--include-dashboard=false", "--num-cpus=0"]
        # Nodes that start at once in one folder take each other's sockets.
        where += ["--node-ip-address", self.hosts.address(host), f"--temp-dir={self.desk.temporary}/{host}"]
        log = self.desk.folder / f"node{host}.txt"
        limits = ("--block", f"--object-store-memory={STORE}", "--disable-usage-stats")
        self.nodes[host] = node = self.program(host, "ray.scripts.scripts", "start", *where, *limits, to=log)
        if not host:
            wait(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None)
            assert node.poll() is None, log.read_text()

    def whole(self) -> None:
        """Start the nodes again that are gone, or about to go because the head has given them up."""
        for host in range(1, self.hosts.count):
            if host not in self.nodes or self.nodes[host].poll() is not None:
                self.hosts.kill(host)
                self.node(host)

    def run(self, name: str, *overrides: str, verb: str = "run") -> Run:
        """Start the command line beside the head."""
        address = f"cluster.address={self.hosts.address(0)}:{PORT}"
        words = [verb, "job.yaml", f"name={name}"] if verb == "run" else [verb, f"runs/{name}"]
        out = self.desk.folder / f"{name}.{verb}.txt"
        self.runs.append(Run(self, name, out, self.program(0, "sparsetrain", *words, address, *overrides, to=out)))
        return self.runs[-1]

    def calm(self) -> None:
        """End the runs that are under way, take all faults from the network and return when no worker is left."""
        for run in self.runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
        for host in range(self.hosts.count):
            self.hosts.mend(host)
            with contextlib.suppress(HostsUnavailable):  # then none was lost
                self.hosts.lose(host, 0)
        self.hosts.reshape("none")
        wait(lambda: not any(self.workers(host) for host in range(self.hosts.count)), 60)

    def at(self, run: Run, rank: int) -> int:
        """Return the host of a rank."""
        return int(self.placed(run)[rank]["host"].removeprefix("node"))

    def placed(self, run: Run) -> list[dict[str, Any]]:
        """Return where the ranks of a run are, in their order; empty until it has found places."""
        path = run.folder / "launch.json"
        return json.loads(path.read_text()).get("placed", []) if path.is_file() else []

    def workers(self, host: int) -> list[int]:
        """Return the ids of the workers' processes in a host."""
        inside = self.hosts.inside(host)
        return sorted(pid for pid, line in self.desk.processes().items() if pid in inside and "ray::RayWorker" in line)


@dataclasses.dataclass
class Run:
    """A run under way in a cluster; `out` is the file of what the command prints."""

    cluster: Cluster
    name: str
    out: pathlib.Path
    process: subprocess.Popen[str]

    @property
    def folder(self) -> pathlib.Path:
        """The run folder."""
        return self.cluster.desk.folder / "runs" / self.name

    def said(self) -> str:
        """Return everything that was printed."""
        return self.out.read_text()

    def rows(self) -> list[dict[str, Any]]:
        """Return the metrics so far."""
        return read(self.folder / "metrics.jsonl")

    def step(self) -> int:
        """Return the step of the last row, 0 before the first."""
        return int(rows[-1]["train/step"]) if (rows := self.rows()) else 0

    def reach(self, step: int, patience: float = 60) -> float:
        """Return the seconds until the run has recorded `step`."""
        began = time.monotonic()
        wait(lambda: self.step() >= step or self.process.poll() is not None, patience, self.said)
        assert self.step() >= step, self.said()
        return time.monotonic() - began

    def onward(self, patience: float = 60) -> float:
        """Return the seconds until the run has recorded two more steps: one may have been under way."""
        return self.reach(self.step() + 2, patience)

    def end(self, patience: float = 60) -> int:
        """Return the exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience)
        raise AssertionError(f"still there after {patience:g} s: {self.said()}")

    def losses(self) -> list[tuple[float | None, ...]]:
        """Return training and validation loss of each row."""
        return [(row["train/loss"], row.get("eval/loss")) for row in self.rows()]

    def incidents(self) -> list[dict[str, Any]]:
        """Return the losses that the run has lived through."""
        return self.cluster.desk.run_json(self.name).get("incidents", [])

    def right(self, steps: int, batch: int) -> None:
        """Compare what the run has come to: all steps once, all samples; the loop compares replicas by itself."""
        assert self.end() == 0, self.said()
        rows = self.rows()
        assert [row["train/step"] for row in rows] == list(range(1, steps + 1))
        assert rows[-1]["train/samples"] == steps * batch
        assert self.cluster.desk.run_json(self.name)["status"] == "finished"
        assert not [path for end in ("part", "unfinished") for path in self.folder.rglob(f"*.{end}")]


def missing() -> str | None:
    """Return what this machine lacks for such a cluster."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    return Hosts.missing() or (None if shutil.which("unshare") else "the command `unshare` is missing (util-linux)")


def wait(until: Callable[[], bool], patience: float = 60, said: Callable[[], str] = lambda: "") -> None:
    """Return when it holds. Raises AssertionError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not until():
        assert time.monotonic() < deadline, f"waited for {patience:g} s: {said()}"
        time.sleep(0.1)


def mine() -> list[str]:
    """Return the namespaces that this process has made."""
    return [name for name in namespaces.names() if name.startswith(f"st{os.getpid()}x")]


@contextlib.contextmanager
def cluster(folder: pathlib.Path, count: int) -> Generator[Cluster]:
    """Hold a cluster of `count` hosts, the head's included; no process, namespace or file of it is left afterwards."""
    desk, before = Desk(folder), set(mine())
    try:
        with Hosts(count=count) as hosts:
            made = Cluster(desk, hosts)
            made.node(0)
            made.whole()
            yield made
        assert desk.left() == {}
        assert set(mine()) == before
    finally:
        shutil.rmtree(desk.temporary, ignore_errors=True)
