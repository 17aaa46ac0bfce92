"""Ranks that meet again after a meeting that failed, with others that were started since."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sparsetrain.collective.connections import Connections
from sparsetrain.collective.transport import PeerLost
from sparsetrain.config.load import parse
from sparsetrain.worker.environment import Place
from sparsetrain.worker.main import process_group


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def meet(rank: int, port: int, listener: socket.socket | None) -> int:
    job = parse({"name": "one", "cluster": {"workers": 2, "collective_timeout": 3, "first_timeout": 10}})
    place = Place(rank=rank, size=2, master_addr="127.0.0.1", master_port=port)
    with process_group(job, place, torch.device("cpu"), lambda line: None, listener, Connections()) as transport:
        return len(transport.gather_bytes(b"here"))


def comes_and_goes_no_further(port: int, done: threading.Event) -> None:
    with contextlib.suppress(dist.DistStoreError):
        store = dist.TCPStore("127.0.0.1", port, 2, False, timeout=timedelta(seconds=10))
        done.wait(10)
        del store


def stays(first: socket.socket, second: socket.socket, queue: Any) -> None:
    done = threading.Event()
    peer = threading.Thread(target=comes_and_goes_no_further, args=(first.getsockname()[1], done))
    peer.start()
    with pytest.raises(PeerLost, match="the ranks do not meet"):
        meet(0, first.getsockname()[1], first)
    done.set()
    peer.join()
    queue.put(("failed once", 0))
    queue.put(("met", meet(0, second.getsockname()[1], second)))


def comes_later(port: int, queue: Any) -> None:
    queue.put(("met", meet(1, port, None)))


@pytest.mark.timeout(60)
def test_a_rank_whose_meeting_failed_meets_one_that_was_started_since() -> None:
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    first, second = listening(), listening()
    old = context.Process(target=stays, args=(first, second, queue))
    new = context.Process(target=comes_later, args=(second.getsockname()[1], queue))
    old.start()
    try:
        assert queue.get(timeout=30) == ("failed once", 0)
        new.start()
        assert [queue.get(timeout=20) for _ in range(2)] == [("met", 2), ("met", 2)]
    finally:
        for process in (old, new):
            if process.pid is not None:
                process.join(timeout=10)
                process.kill()
                process.join()
        first.close()
        second.close()
