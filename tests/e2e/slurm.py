"""A Slurm cluster for tests: its daemons on hosts that are network namespaces, with names and files of their own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator

from commands import Desk

from sparsetrain.bench.hosts import Hosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODE_PORT, CONTROL_PORT = 6818, 6817
# Every host has its own name, and knows all names, as on a real cluster.
IN_HOST = 'hostname "$1" && mount --bind "$2" /etc/hosts && cd "$3" && shift 3 && exec "$@"'


def missing() -> str:
    """Return what keeps Slurm from running here, nothing when it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{absent[0]} is not installed (Debian: slurm-wlm, munge)"
    return Hosts.missing() or ""


class Slurm:
    """Host 0, `control`, has the controller, and jobs are submitted there; the others are the nodes node1, node2 ..."""

    def __init__(self, desk: Desk, hosts: Hosts, folder: pathlib.Path, kill_wait: int) -> None:
        self.kill_wait = kill_wait
        self.desk, self.hosts, self.folder = desk, hosts, folder
        self.names = ["control", *(f"node{host}" for host in range(1, hosts.count))]
        self.daemons: list[subprocess.Popen[str]] = []

    def env(self) -> dict[str, str]:
        """Return the environment of all programs in the hosts."""
        return {**self.desk.env(), "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def program(self, host: int, *words: str, to: pathlib.Path) -> subprocess.Popen[str]:
        """Start a program in a host, in the desk's folder; what it prints goes to the file `to`."""
        where = [self.names[host], str(self.folder / "hosts"), str(self.desk.folder)]
        with to.open("a") as file:
            # Not `ip netns exec`, which puts another /sys in the place of the one that slurmd looks for cgroups in.
            inside = ["nsenter", f"--net={self.hosts.path(host)}", "unshare", "--uts", "--mount"]
            return subprocess.Popen(
                [*inside, "sh", "-c", IN_HOST, "sh", *where, *words],
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def call(self, *words: str, seconds: float = 60) -> tuple[int, str]:
        """Run a client program beside the controller; return its exit code and what it printed."""
        out = self.folder / f"call-{secrets.token_hex(4)}"
        process = self.program(0, *words, to=out)
        return process.wait(seconds), out.read_text()

    def start(self) -> None:
        """Start all daemons; the nodes are idle when this returns."""
        self._files()
        key = str(self.folder / "munge.key")
        munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self.daemons.append(self.program(0, *munge, to=self.folder / "munged.txt"))
        wait(lambda: (self.folder / "munge.socket").exists(), 10, lambda: "munged")
        self.daemons.append(self.program(0, "slurmctld", "-D", "-c", to=self.folder / "slurmctld.txt"))
        for host, name in enumerate(self.names[1:], 1):
            self.daemons.append(self.program(host, "slurmd", "-D", "-N", name, to=self.folder / f"{name}.txt"))
        idle = " ".join(["idle"] * len(self.names[1:]))
        wait(lambda: self.states() == idle, 30, lambda: "\n".join(p.read_text() for p in self.folder.glob("*.txt")))

    def states(self) -> str:
        """Return the states of the nodes in their order."""
        return " ".join(self.call("sinfo", "-h", "-N", "-o", "%T")[1].split())

    def stop(self) -> None:
        """End all daemons and whatever jobs have left."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
        for host in range(self.hosts.count):
            self.hosts.kill(host)

    def _files(self) -> None:
        self.folder.mkdir()
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "munge.key").chmod(0o600)
        addresses = [f"{self.hosts.address(host)} {name}" for host, name in enumerate(self.names)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses, ""]))
        for name in ("state", *self.names[1:]):
            (self.folder / name).mkdir()
        nodes = [
            f"NodeName={name} NodeAddr={self.hosts.address(host)} NodeHostname={name} Port={NODE_PORT} CPUs=2"
            for host, name in enumerate(self.names[1:], 1)
        ]
        lines = [
            "ClusterName=sparsetrain",
            f"SlurmctldHost=control({self.hosts.address(0)})",
            f"SlurmctldPort={CONTROL_PORT}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.folder}/munge.socket",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/%n.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "MpiDefault=none",
            "ReturnToService=2",
            f"KillWait={self.kill_wait}",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1",
            *nodes,
            f"PartitionName=main Nodes={','.join(self.names[1:])} Default=YES MaxTime=60 State=UP",
            "",
        ]
        (self.folder / "slurm.conf").write_text("\n".join(lines))


@contextlib.contextmanager
def slurm(desk: Desk, nodes: int, kill_wait: int = 5) -> Generator[Slurm]:
    """Give a Slurm cluster of so many nodes and remove it; `kill_wait`: seconds between its SIGTERM and SIGKILL."""
    with Hosts(nodes + 1) as hosts:
        cluster = Slurm(desk, hosts, desk.temporary / "slurm", kill_wait)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def wait(ready: Callable[[], bool], seconds: float, said: Callable[[], str]) -> None:
    """Return when `ready`; an AssertionError with `said` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)


def _path() -> str:
    own = pathlib.Path(sys.executable).parent
    return os.pathsep.join([str(own), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
