"""A rank that dies is named by those who were connected to it."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pathlib
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sparsetrain.collective.connections import Connections
from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.transport import PeerLost


def body(rank: int, meet: str, queue: Any) -> None:
    connections = Connections()
    with connections.watched():
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meet}",
            rank=rank,
            world_size=3,
            timeout=datetime.timedelta(seconds=15),
        )
        transport = TorchTransport(connections=connections)
        transport.tell_ports()
    way = transport.twin()
    way.barrier()
    if rank == 2:
        os._exit(9)
    try:
        while True:
            way.all_reduce(torch.zeros(50_000), "control")
    except PeerLost as error:
        queue.put((rank, str(error)))
        queue.close()
        queue.join_thread()
    os._exit(0)


@pytest.mark.timeout(60)
def test_its_neighbours_say_which_rank_is_gone(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    processes = [context.Process(target=body, args=(rank, str(tmp_path / "meet"), queue)) for rank in range(3)]
    for process in processes:
        process.start()
    try:
        said = dict(queue.get(timeout=40) for _ in range(2))
        assert set(said) == {0, 1}
        # One of them may hear of it from the other, which has left by then.
        assert any(line.startswith("rank 2 is gone: ") for line in said.values()), said
        assert all(line.startswith("rank ") for line in said.values()), said
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
            process.join()


def test_a_message_without_a_port_stays_what_it_is() -> None:
    connections = Connections()
    connections.owners["127.0.0.1:4000"] = 1
    assert connections.named("Connection closed by peer [127.0.0.1]:4000").startswith("rank 1 is gone: Connection")
    assert (
        connections.named("Connection closed by peer [127.0.0.1]:4001") == "Connection closed by peer [127.0.0.1]:4001"
    )
    assert connections.named("Timed out waiting 8000ms") == "Timed out waiting 8000ms"
