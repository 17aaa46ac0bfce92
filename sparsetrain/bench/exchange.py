"""`bench exchange`: what the mean of a gradient costs over links of a given rate, next to what the wire allows.

A process per host, four candidates that users have today and several of ours, in turns. The hosts share one machine's
processors: with more hosts than cores, what a candidate computes counts against it more than on real machines.
Memory: about 3.3 GB per host at 25 million elements. ok_topk's exact threshold falls into the warm-up round; over a run
it comes every 32 exchanges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any

from sparsetrain.bench import links, namespaces, table
from sparsetrain.bench.hosts import Hosts
from sparsetrain.launch import signals

GOODPUT = 1448 / 1514  # payload in a full packet
TAIL = 12  # lines of a failed rank
POLL_S = 0.1
COLUMNS = (
    "name",
    "seconds",
    "payload_bytes",
    "interface_bytes",
    "bound_s",
    "ratio_to_bound",
    "predicted_s",
    "speedup_over_fp32",
    "speedup_over_bf16",
)


class RankFailed(RuntimeError):
    """A rank ended badly or took too long; the text holds the last lines that it wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: `hosts` ranks, links of `rate` ("100mbit", "none"), or plain processes when `loopback`.

    No rank lives longer than `limit_s` seconds.
    """

    hosts: int = 4
    rate: str = "100mbit"
    size: int = 25_000_000
    density: float = 0.01
    rounds: int = 5
    loopback: bool = False
    limit_s: float = 1800.0

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        links.parse_rate(self.rate)
        if self.hosts < 2 or self.rounds < 1 or self.size < 1000 or not 0 < self.density <= 1 or self.limit_s <= 0:
            raise ValueError("want at least 2 hosts, 1 round, 1000 elements and a second, and a density in (0, 1]")
        if self.loopback and self.rate != "none":
            raise ValueError(f"rate {self.rate}: loopback has no rate; allowed: none")


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


def measure(plan: Plan) -> dict[str, Any]:
    """Return the plan, n, the measured seconds of one hop, and a row per candidate with COLUMNS (bytes per rank and
    exchange, mean over ranks).

    Raises RankFailed, and HostsUnavailable where there can be no hosts; nothing is left running then.
    """
    hosts = Loopback() if plan.loopback else Hosts(plan.hosts, plan.rate)
    with tempfile.TemporaryDirectory(prefix="sparsetrain-bench-") as folder, hosts, signals.listening() as stop:
        processes = _start(plan, hosts, pathlib.Path(folder))
        _wait(plan, processes, pathlib.Path(folder), stop)
        figures = [json.loads((pathlib.Path(folder) / f"{rank}.out").read_text()) for rank in range(plan.hosts)]
    latency = max(each["latency_s"] for each in figures)
    names = list(figures[0]["candidates"])
    of_rank = {name: [each["candidates"][name] for each in figures] for name in names}
    slowest = {name: [max(t) for t in zip(*(r["seconds"] for r in of_rank[name]), strict=True)] for name in names}
    over = {base: table.ratio(slowest, base) for base in ("dense fp32", "dense bf16")}
    rows = [row(name, of_rank[name], links.parse_rate(plan.rate), latency) for name in names]
    for each in rows:
        each["speedup_over_fp32"] = 1 / over["dense fp32"][each["name"]]
        each["speedup_over_bf16"] = 1 / over["dense bf16"][each["name"]]
    return {**dataclasses.asdict(plan), "n": figures[0]["n"], "latency_s": latency, "rows": rows}


def row(name: str, ranks: Sequence[Mapping[str, Any]], rate: int | None, latency: float) -> dict[str, Any]:
    """Return one candidate's row, without the speed-ups, from the figures of all ranks.

    The bound is the time that the received payload takes on the wire; what all ranks receive is what all have sent.
    The prediction is that of the candidate's formula, with `latency` per message and no time to compute.
    """
    seconds = max(statistics.median(each["seconds"]) for each in ranks)
    payload = statistics.fmean(statistics.fmean(each["payload"]) for each in ranks)
    counted = None if None in ranks[0]["interface"] else [statistics.fmean(each["interface"]) for each in ranks]
    per_byte = None if rate is None else 8 / (rate * GOODPUT)
    bound = None if per_byte is None else payload * per_byte
    return {
        "name": name,
        "seconds": seconds,
        "payload_bytes": round(payload),
        "interface_bytes": None if counted is None else round(statistics.fmean(counted)),
        "bound_s": bound,
        "ratio_to_bound": None if bound is None else seconds / bound,
        "predicted_s": None if per_byte is None else ranks[0]["bytes"] * per_byte + ranks[0]["messages"] * latency,
    }


def show(result: Mapping[str, Any]) -> str:
    """Return the table that people read, under one line that says what was measured."""
    where = "loopback" if result["loopback"] else f"{result['rate']} links"
    heading = (
        f"{result['hosts']} ranks, {where}, {result['n']} elements, density {result['density']:g}, "
        f"{result['rounds']} rounds, {result['latency_s'] * 1e6:.0f} us a hop"
    )
    return f"{heading}\n{table.render(result['rows'], COLUMNS)}"


def _start(plan: Plan, hosts: Hosts | Loopback, folder: pathlib.Path) -> list[subprocess.Popen[str]]:
    common = {
        "ranks": plan.hosts,
        "address": hosts.address(0),
        "port": _free_port() if plan.loopback else 29500,
        "size": plan.size,
        "density": plan.density,
        "rounds": plan.rounds,
        "limit_s": plan.limit_s,
        "interface": None if plan.loopback else hosts.interface,  # loopback's counter is one for all ranks
    }
    env = {**os.environ, "GLOO_SOCKET_IFNAME": hosts.interface, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(plan.hosts):
        spec = folder / f"{rank}.json"
        spec.write_text(json.dumps({"rank": rank, **common}))
        program = [sys.executable, "-m", "sparsetrain.bench.rank", str(spec)]
        with (folder / f"{rank}.out").open("w") as out, (folder / f"{rank}.err").open("w") as err:
            processes.append(hosts.start(rank, program, env=env, stdout=out, stderr=err))
    return processes


def _wait(plan: Plan, processes: Sequence[subprocess.Popen[str]], folder: pathlib.Path, stop: signals.Stop) -> None:
    """Return when all ranks have ended well; raise RankFailed for the first that has not."""
    deadline = time.monotonic() + plan.limit_s + 10.0  # ranks end themselves first and say where they stood
    codes: list[int | None] = [None]
    while None in codes:
        stop.check()
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                raise RankFailed(f"rank {rank} ended with code {code}:\n{_tail(folder / f'{rank}.err')}")
        if time.monotonic() > deadline:
            raise RankFailed(f"the ranks did not end within {plan.limit_s:g} s")
        time.sleep(POLL_S)


def _tail(path: pathlib.Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL:])


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
