"""Runs a program as ranks: a process per host, over links of a given rate or over loopback.

The program is a module that `python -m MODULE SPEC.json` starts; it prints its figures as JSON when it ends well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any

from sparsetrain.bench import links, namespaces
from sparsetrain.bench.hosts import Hosts
from sparsetrain.launch import signals

TAIL = 12  # lines of a failed rank
POLL_S = 0.1


class RankFailed(RuntimeError):
    """A rank ended badly or took too long; the text holds the last lines that it wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """`hosts` ranks on links of `rate` ("100mbit", "none"), or plain processes when `loopback`.

    No rank lives longer than `limit_s` seconds.
    """

    hosts: int = 4
    rate: str = "100mbit"
    loopback: bool = False
    limit_s: float = 1800.0

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        links.parse_rate(self.rate)
        if self.hosts < 2 or self.limit_s <= 0:
            raise ValueError("want at least 2 hosts and a second")
        if self.loopback and self.rate != "none":
            raise ValueError(f"rate {self.rate}: loopback has no rate; allowed: none")

    def describe(self) -> str:
        """Return the ranks and where they run, for a table's heading."""
        return f"{self.hosts} ranks, " + ("loopback" if self.loopback else f"{self.rate} links")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """What every rank has to know; `limit_s` ends it whatever it does, `interface` is counted unless it is None."""

    rank: int
    ranks: int
    address: str
    port: int
    limit_s: float
    interface: str | None = None


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

    def address(self, host: int) -> str:
        """Return the address of all."""
        return "127.0.0.1"

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
    """Return what each rank's program printed; it finds its Place and `plan` in its SPEC.json.

    Raises RankFailed, and HostsUnavailable where there can be no hosts; nothing is left running then.
    """
    hosts = Loopback() if ranks.loopback else Hosts(ranks.hosts, ranks.rate)
    with tempfile.TemporaryDirectory(prefix="sparsetrain-bench-") as name, hosts, signals.listening() as stop:
        folder = pathlib.Path(name)
        processes = _start(ranks, hosts, module, plan, folder)
        _wait(ranks, processes, folder, stop)
        return [json.loads((folder / f"{rank}.out").read_text()) for rank in range(ranks.hosts)]


def _start(
    ranks: Ranks, hosts: Hosts | Loopback, module: str, plan: Mapping[str, Any], folder: pathlib.Path
) -> list[subprocess.Popen[str]]:
    port = _free_port() if ranks.loopback else 29500
    counted = None if ranks.loopback else hosts.interface  # loopback's counter is one for all ranks
    env = {**os.environ, "GLOO_SOCKET_IFNAME": hosts.interface, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(ranks.hosts):
        place = Place(
            rank=rank,
            ranks=ranks.hosts,
            address=hosts.address(0),
            port=port,
            limit_s=ranks.limit_s,
            interface=counted,
        )
        spec = folder / f"{rank}.json"
        spec.write_text(json.dumps({"place": dataclasses.asdict(place), "plan": dict(plan)}))
        program = [sys.executable, "-m", module, str(spec)]
        with (folder / f"{rank}.out").open("w") as out, (folder / f"{rank}.err").open("w") as err:
            processes.append(hosts.start(rank, program, env=env, stdout=out, stderr=err))
    return processes


def _wait(ranks: Ranks, processes: Sequence[subprocess.Popen[str]], folder: pathlib.Path, stop: signals.Stop) -> None:
    """Return when all ranks have ended well; raise RankFailed for the first that has not."""
    deadline = time.monotonic() + ranks.limit_s + 10.0  # ranks end themselves first and say where they stood
    codes: list[int | None] = [None]
    while None in codes:
        stop.check()
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                raise RankFailed(f"rank {rank} ended with code {code}:\n{_tail(folder / f'{rank}.err')}")
        if time.monotonic() > deadline:
            raise RankFailed(f"the ranks did not end within {ranks.limit_s:g} s")
        time.sleep(POLL_S)


def _tail(path: pathlib.Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL:])


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
