"""One rank of `bench exchange`: `python -m sparsetrain.bench.rank SPEC.json` prints its figures as JSON.

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
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from sparsetrain.bench.candidates import SPARSE, Candidate, Dense, Naive, Ours, PowerSGD
from sparsetrain.bench.exchange import Plan
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.synthetic import Gradient
from sparsetrain.collective.torch_dist import TorchTransport

WARMUP = 1  # rounds that are not kept: first touches of memory, first exact threshold of ok_topk
PINGS = 21


def build(gradient: Gradient, density: float) -> dict[str, Candidate]:
    """Return all candidates by name, in the order in which they take turns. Collective."""
    found: dict[str, Candidate] = {
        "dense fp32": Dense(gradient, TorchTransport(), torch.float32),
        "dense bf16": Dense(gradient, TorchTransport(), torch.bfloat16),
        "naive topk": Naive(gradient, TorchTransport(), density),
        "powersgd rank 4": PowerSGD(gradient, TorchTransport(), rank=4),
    }
    return found | {
        name: Ours(gradient, TorchTransport(), {"density": density, **settings}) for name, settings in SPARSE.items()
    }


def measure(place: Place, plan: Plan) -> dict[str, Any]:
    """Return this rank's figures: n, seconds of one hop, and per candidate seconds, meter and interface bytes sent
    in each round (None without an interface), predicted volume and messages. Collective."""
    gradient = Gradient(plan.size, place.rank)
    candidates = build(gradient, plan.density)
    try:
        hop = latency(place.ranks)
        figures: dict[str, dict[str, Any]] = {
            name: {"seconds": [], "payload": [], "interface": [], **dataclasses.asdict(candidate.volume())}
            for name, candidate in candidates.items()
        }
        for turn in range(WARMUP + plan.rounds):
            gradient.draw(turn)
            for name, candidate in candidates.items():
                seen = once(candidate, place.interface)
                if turn >= WARMUP:
                    for key, value in seen.items():
                        figures[name][key].append(value)
        return {"n": gradient.size, "latency_s": hop, "candidates": figures}
    finally:
        for candidate in candidates.values():
            candidate.close()


def once(candidate: Candidate, interface: str | None) -> dict[str, float | None]:
    """Return seconds, meter and interface bytes sent of one call. Collective."""
    candidate.prepare()
    dist.barrier()
    wire, booked = sent_bytes(interface), candidate.transport.meter.total
    start = time.perf_counter()
    candidate.exchange()
    seconds = time.perf_counter() - start
    dist.barrier()  # what a rank sends counts when its peers have it
    now = sent_bytes(interface)
    return {
        "seconds": seconds,
        "payload": candidate.transport.meter.total - booked,
        "interface": None if wire is None or now is None else now - wire,
    }


def latency(ranks: int) -> float:
    """Return the median seconds of one hop: a 4-byte all-reduce takes 2 (P-1) of them. Collective."""
    word, spent = torch.zeros(1), []
    for _ in range(PINGS):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(word)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent) / (2 * (ranks - 1))


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


@contextlib.contextmanager
def joined(place: Place) -> Iterator[None]:
    """Hold the default process group, and end this process when its time is over. Collective."""
    end_after(place.limit_s)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{place.address}:{place.port}",
        rank=place.rank,
        world_size=place.ranks,
        timeout=datetime.timedelta(seconds=place.limit_s),
    )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def main(path: str) -> None:
    """Join the ranks, measure, print."""
    spec = json.loads(pathlib.Path(path).read_text())
    place = Place(**spec["place"])
    with joined(place):
        figures = measure(place, Plan(**spec["plan"]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
