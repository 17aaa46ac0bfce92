"""Runs a program as ranks: a process per host, over links of a given rate or over loopback.

The program is a module that `python -m MODULE N.json` starts; it writes its figures to N.figures when it ends well.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any

from sparsetrain.bench import namespaces
from sparsetrain.bench.hosts import Hosts
from sparsetrain.config.rate import parse_rate
from sparsetrain.launch import signals

TRANSPORTS = ("gloo", "mpi")
# MPICH looks for the host's fastest network; its launcher starts the ranks itself.
MPI = {
    "HYDRA_IFACE": "lo",
    "HYDRA_LAUNCHER": "fork",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "lo",
}
TAIL = 12  # lines of a failed rank
POLL_S = 0.1
CHANGE_S = 30.0
LONGEST_S = 1e6


class RankFailed(RuntimeError):
    """A rank ended badly or took too long; the text holds the last lines that it wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """`hosts` ranks on links of `rate` ("100mbit", "none"), or plain processes when `loopback`.

    `then` is the rate from when a rank asks for it (Place.ask_for_change). No rank lives longer than `limit_s` seconds.
    MPI's ranks are started by mpiexec, on the loopback only.
    """

    hosts: int = 4
    rate: str = "100mbit"
    then: str | None = None
    loopback: bool = False
    limit_s: float = 1800.0
    transport: str = "gloo"

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        parse_rate(self.rate)
        if self.hosts < 2 or not 0 < self.limit_s < LONGEST_S:
            raise ValueError(f"want at least 2 hosts, and a limit of seconds above 0 and below {LONGEST_S:g}")
        if self.loopback and self.rate != "none":
            raise ValueError(f"rate {self.rate}: loopback has no rate; allowed: none")
        if self.then is not None:
            parse_rate(self.then)
            if self.loopback:
                raise ValueError(f"rate {self.then}: loopback has no rate that could change")
        if self.transport not in TRANSPORTS:
            raise ValueError(f"transport {self.transport}: no such transport; allowed: {', '.join(TRANSPORTS)}")
        if self.transport == "mpi" and not self.loopback:
            raise ValueError("transport mpi: its ranks run here on the loopback only; allowed: with --loopback")

    def describe(self) -> str:
        """Return the ranks and where they run, for a table's heading."""
        return f"{self.hosts} ranks, " + (f"{self.transport} on loopback" if self.loopback else f"{self.rate} links")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """What every rank has to know; `limit_s` ends it whatever it does, and so does the end of the process `driver`;
    `interface` is counted unless it is None.

    Ranks find each other through the file `meet`, which all hosts share: a port could be taken before it is used. Where
    links are to change, `change` names the file that asks for it.
    """

    rank: int
    ranks: int
    meet: str
    limit_s: float
    driver: int
    interface: str | None = None
    transport: str = "gloo"
    change: str | None = None

    def ask_for_change(self) -> None:
        """Return when all links have their other rate. Raises RuntimeError where none is foreseen, or none comes."""
        if self.change is None:
            raise RuntimeError("these ranks have one rate only")
        wanted, done = pathlib.Path(self.change), pathlib.Path(f"{self.change}.done")
        wanted.touch()
        deadline = time.monotonic() + CHANGE_S
        while not done.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"links did not change within {CHANGE_S:g} s")
            time.sleep(POLL_S)


class Loopback:
    """Plain processes on this machine's loopback, with the part of Hosts that is used here."""

    interface = "lo"

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Loopback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """End the processes, whatever the user does meanwhile."""
        with signals.undisturbed():
            namespaces.remove([], self._processes)

    def start(
        self, host: int, program: Sequence[str], env: Mapping[str, str], stdout: IO[Any], stderr: IO[Any]
    ) -> subprocess.Popen[str]:
        """Start a program; see Hosts."""
        process = subprocess.Popen(
            program,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process


def run(ranks: Ranks, module: str, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each rank's program wrote; it finds its Place and `plan` in its N.json.

    Raises RankFailed, ValueError where MPI cannot start, and HostsUnavailable where there can be no hosts; nothing is
    left running then.
    """
    starter = _mpiexec() if ranks.transport == "mpi" else ""
    hosts = Loopback() if ranks.loopback else Hosts(ranks.hosts, ranks.rate)
    with tempfile.TemporaryDirectory(prefix="sparsetrain-bench-") as name, hosts, signals.listening() as stop:
        folder = pathlib.Path(name)
        programs = _programs(ranks, hosts, module, plan, folder)
        if starter:
            together = [
                part for rank, program in enumerate(programs) for part in (":" * bool(rank), "-n", "1", *program)
            ]
            programs = [[starter, *filter(None, together)]]
        processes = _start(hosts, programs, folder, MPI if starter else {})
        _wait(ranks, processes, hosts, folder, stop)
        return [json.loads((folder / f"{rank}.figures").read_text()) for rank in range(ranks.hosts)]


def _mpiexec() -> str:
    places = os.pathsep.join((str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("mpiexec", path=places)
    if found is None or importlib.util.find_spec("mpi4py") is None:
        raise ValueError("transport mpi: needs mpi4py and mpiexec: pip install 'sparsetrain[mpi]'")
    return found


def _programs(
    ranks: Ranks, hosts: Hosts | Loopback, module: str, plan: Mapping[str, Any], folder: pathlib.Path
) -> list[list[str]]:
    """Write each rank's specification; return the programs to start."""
    counted = None if ranks.loopback else hosts.interface  # loopback's counter is one for all ranks
    for rank in range(ranks.hosts):
        place = Place(
            rank=rank,
            ranks=ranks.hosts,
            meet=str(folder / "meet"),
            limit_s=ranks.limit_s,
            driver=os.getpid(),
            interface=counted,
            transport=ranks.transport,
            change=None if ranks.then is None else str(folder / "change"),
        )
        (folder / f"{rank}.json").write_text(json.dumps({"place": dataclasses.asdict(place), "plan": dict(plan)}))
    return [[sys.executable, "-m", module, str(folder / f"{rank}.json")] for rank in range(ranks.hosts)]


def _start(
    hosts: Hosts | Loopback, programs: Sequence[Sequence[str]], folder: pathlib.Path, extra: Mapping[str, str]
) -> list[subprocess.Popen[str]]:
    env = {**os.environ, "GLOO_SOCKET_IFNAME": hosts.interface, "OMP_NUM_THREADS": "1", **extra}
    processes = []
    for number, program in enumerate(programs):
        with (folder / f"{number}.err").open("w") as err:
            processes.append(hosts.start(number, program, env=env, stdout=err, stderr=err))
    return processes


def _wait(
    ranks: Ranks,
    processes: Sequence[subprocess.Popen[str]],
    hosts: Hosts | Loopback,
    folder: pathlib.Path,
    stop: signals.Stop,
) -> None:
    """Return when all ranks have ended well; raise RankFailed for the first that has not. Links change when asked."""
    change, then = folder / "change", ranks.then
    deadline = time.monotonic() + ranks.limit_s + 10.0  # ranks end themselves first and say where they stood
    codes: list[int | None] = [None]
    while None in codes:
        stop.check()
        if then is not None and isinstance(hosts, Hosts) and change.exists():
            hosts.reshape(then)
            pathlib.Path(f"{change}.done").touch()
            then = None
        codes = [process.poll() for process in processes]
        for number, code in enumerate(codes):
            if code:
                who = "mpiexec" if ranks.transport == "mpi" else f"rank {number}"
                raise RankFailed(f"{who} ended with code {code}:\n{_tail(folder / f'{number}.err')}")
        if time.monotonic() > deadline:
            raise RankFailed(f"the ranks did not end within {ranks.limit_s:g} s")
        time.sleep(POLL_S)


def _tail(path: pathlib.Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL:])
