"""Real gloo ranks for tests: forked processes on loopback, with a time limit."""

from __future__ import annotations

import datetime
import io
import multiprocessing
import os
import pathlib
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.world import World


def _main(rank: int, size: int, meet: str, body: Callable[[World], Any], queue: Any, env: dict[str, str]) -> None:
    os.environ.update(env)  # the server that forks knows that of its own start
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meet}",  # a free port may be taken before it is used
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=30),
    )
    try:
        result = body(World(rank=rank, size=size, local_rank=rank, transport=TorchTransport()))
        dist.barrier()
        dist.destroy_process_group()
        packed = io.BytesIO()
        torch.save(result, packed)  # as bytes: a tensor in a queue would need its sender to stay alive
        queue.put((rank, "ok", packed.getvalue()))
    except BaseException:
        queue.put((rank, "failed", traceback.format_exc()))
        raise


def gloo_ranks(size: int, body: Callable[[World], Any], seconds: float = 60) -> list[Any]:
    """Return body(world) of `size` gloo processes, in rank order; `body` must be importable."""
    with tempfile.TemporaryDirectory(prefix="sparsetrain-ranks-") as folder:
        return _together(size, str(pathlib.Path(folder) / "meet"), body, seconds)


def _together(size: int, meet: str, body: Callable[[World], Any], seconds: float) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    env = dict(os.environ)
    processes = [context.Process(target=_main, args=(rank, size, meet, body, queue, env)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        results: dict[int, Any] = {}
        while len(results) < size:
            rank, outcome, value = queue.get(timeout=seconds)
            if outcome == "failed":
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = torch.load(io.BytesIO(value), weights_only=False)
        return [results[rank] for rank in range(size)]
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()
