"""One rank of `bench exchange`: `python -m sparsetrain.bench.rank N.json` writes its figures to N.figures.

The candidates take turns, and a barrier before and after each keeps one's bytes and time out of the next one's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import faulthandler
import json
import os
import pathlib
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.distributed as dist

from sparsetrain.bench.candidates import SPARSE, Candidate, Dense, Naive, Ours, PowerSGD
from sparsetrain.bench.exchange import Plan
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.synthetic import Gradient
from sparsetrain.collective.mpi import MpiTransport, mpi_world
from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.transport import Transport
from sparsetrain.engine.memory import keep_freed_memory

WARMUP = 1  # rounds that are not kept: first touches of memory, first regions of ok_topk
PINGS = 21


Way = Callable[[], Transport]  # to the other ranks, with a meter of its own


def build(gradient: Gradient, density: float, way: Way) -> dict[str, Candidate]:
    """Return all candidates by name, in the order in which they take turns. Collective."""
    found: dict[str, Candidate] = {
        "dense fp32": Dense(gradient, way(), torch.float32),
        "dense bf16": Dense(gradient, way(), torch.bfloat16),
        "naive topk": Naive(gradient, way(), density),
        "powersgd rank 4": PowerSGD(gradient, way(), rank=4),
    }
    return found | {name: Ours(gradient, way(), {"density": density, **settings}) for name, settings in SPARSE.items()}


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: n, seconds of one hop, and per candidate seconds, meter and interface bytes sent
    in each round (None without an interface), predicted volume and messages. Collective."""
    gradient = Gradient(plan.size, place.rank)
    candidates = build(gradient, plan.density, way)
    meeting = way()
    try:
        hop = latency(meeting)
        figures: dict[str, dict[str, Any]] = {
            name: {"seconds": [], "payload": [], "interface": [], **dataclasses.asdict(candidate.volume())}
            for name, candidate in candidates.items()
        }
        for turn in range(WARMUP + plan.rounds):
            gradient.draw(turn)
            for name, candidate in candidates.items():
                seen = once(candidate, meeting, place.interface)
                if turn >= WARMUP:
                    for key, value in seen.items():
                        figures[name][key].append(value)
        return {"n": gradient.size, "latency_s": hop, "candidates": figures}
    finally:
        for candidate in candidates.values():
            candidate.close()


def once(candidate: Candidate, meeting: Transport, interface: str | None) -> dict[str, float | None]:
    """Return seconds, meter and interface bytes sent of one call. Collective."""
    candidate.prepare()
    meeting.barrier()
    wire, booked = sent_bytes(interface), candidate.transport.meter.total
    start = time.perf_counter()
    candidate.exchange()
    seconds = time.perf_counter() - start
    meeting.barrier()  # what a rank sends counts when its peers have it
    now = sent_bytes(interface)
    return {
        "seconds": seconds,
        "payload": candidate.transport.meter.total - booked,
        "interface": None if wire is None or now is None else now - wire,
    }


def latency(meeting: Transport) -> float:
    """Return the median seconds of one hop: a 4-byte all-reduce takes 2 (P-1) of them. Collective."""
    word, spent = torch.zeros(1), []
    for _ in range(PINGS):
        meeting.barrier()
        start = time.perf_counter()
        meeting.all_reduce(word, "control")
        spent.append(time.perf_counter() - start)
    return statistics.median(spent) / (2 * (meeting.size - 1))


def sent_bytes(interface: str | None) -> int | None:
    """Return the bytes that an interface of this process's network has sent; None for None."""
    if interface is None:
        return None
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, found, numbers = line.partition(":")
        if found and name.strip() == interface:
            return int(numbers.split()[8])
    raise ValueError(f"no interface {interface!r} here")


def end_after(seconds: float) -> None:
    """End this process with code 1 after `seconds`, with the stacks of all threads on stderr."""

    def end() -> None:
        faulthandler.dump_traceback()
        os._exit(1)

    # The stacks are read under the interpreter's lock: faulthandler's own timer reads them without and crashes at
    # times, so it comes second, for a rank that never lets the lock go.
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + 5.0, exit=True)


def end_with(driver: int, folder: pathlib.Path) -> None:
    """End this process with code 1 when another one is gone without having ended it, and remove what that one left."""

    def watch() -> None:
        while pathlib.Path(f"/proc/{driver}").exists():
            time.sleep(1.0)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def joined(place: Place) -> Generator[Way]:
    """Join the other ranks, and end this process when its time is over. Collective.

    Hosts share no cores: the ranks spread over those of this machine, as far as there are enough of them.
    """
    end_after(place.limit_s)
    end_with(place.driver, pathlib.Path(place.meet).parent)
    keep_freed_memory()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[place.rank :: place.ranks]) if place.ranks <= len(cores) else cores)
    with _mpi(place) if place.transport == "mpi" else _gloo(place) as way:
        yield way
        way().barrier()


@contextlib.contextmanager
def _gloo(place: Place) -> Generator[Way]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place.meet}",
        rank=place.rank,
        world_size=place.ranks,
        timeout=datetime.timedelta(seconds=place.limit_s),
    )
    try:
        yield TorchTransport
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _mpi(place: Place) -> Generator[Way]:
    transport = mpi_world(timeout=place.limit_s).transport
    assert isinstance(transport, MpiTransport)
    try:
        yield lambda: MpiTransport(transport.communicator, timeout=place.limit_s)
    except BaseException:
        traceback.print_exc()
        transport.communicator.Abort(1)  # MPI's own end would wait for the other ranks
        raise


def serve(path: str, plan: Callable[..., Any], figures_of: Callable[[Place, Any, Way], dict[str, Any]]) -> None:
    """Join the ranks, measure, write the figures beside the specification at `path`, whose plan `plan` makes, and end
    this process."""
    spec = pathlib.Path(path)
    found = json.loads(spec.read_text())
    place = Place(**found["place"])
    with joined(place) as way:
        figures = figures_of(place, plan(**found["plan"]), way)
    spec.with_suffix(".figures").write_text(json.dumps(figures))
    if place.transport != "mpi":  # MPI is left by an ordinary exit, which threads of engines would now and then abort
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
