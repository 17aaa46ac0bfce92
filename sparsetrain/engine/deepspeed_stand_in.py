"""DeepSpeed's communication, with one answer of our own: what it reduces has been exchanged already."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from sparsetrain.collective.meter import ByteMeter
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.engine.rehearsal import Moved

REDUCTIONS = ("reduce", "reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_base", "all_to_all_single")
ADVICE = "this version is not one that sparsetrain[deepspeed] allows, or its settings change how gradients are reduced"


class StandIn:
    """DeepSpeed's communication, with answers of our own while gradients that are equal on all ranks are reduced. What
    it sends beside is booked as weights."""

    def __init__(self, backend: Any, size: int, meter: ByteMeter) -> None:
        self.backend = backend
        self.size = size
        self.meter = meter
        self.answers = False
        self.elements = 0

    def __getattr__(self, name: str) -> Any:
        if self.answers and name in REDUCTIONS:
            raise Moved(f"deepspeed reduces gradients by {name}, where all_reduce was expected; {ADVICE}")
        return getattr(self.backend, name)

    @contextlib.contextmanager
    def answering(self, elements: int | None = None) -> Generator[None]:
        """Inside, all-reduces are of tensors that are equal on all ranks: no byte is sent. Raises Moved when they were
        not of so many elements in all."""
        self.answers, self.elements = True, 0
        try:
            yield
        finally:
            self.answers = False
        if elements is not None and self.elements != elements:
            raise Moved(f"deepspeed has reduced {self.elements} of {elements} gradient elements; {ADVICE}")

    def all_reduce(self, tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> Any:
        """Return what the backend does, or inside `answering` multiply by the number of ranks."""
        if not self.answers:
            self.meter.add("weight", 2 * tensor.nbytes * (self.size - 1) / self.size)
            return self.backend.all_reduce(tensor, op, group, async_op)
        self.elements += tensor.numel()
        tensor.mul_(self.size)
        return Done() if async_op else None

    def all_gather_into_tensor(self, output_tensor: Tensor, input_tensor: Tensor, *more: Any, **options: Any) -> Any:
        """Return what the backend does."""
        self._gathers(input_tensor)
        return self.backend.all_gather_into_tensor(output_tensor, input_tensor, *more, **options)

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor, *more: Any, **options: Any) -> Any:
        """Return what the backend does."""
        self._gathers(tensor)
        return self.backend.all_gather(tensor_list, tensor, *more, **options)

    def all_gather_coalesced(self, output_tensors: Any, input_tensors: Any, *more: Any, **options: Any) -> Any:
        """Return what the backend does."""
        self._gathers(*input_tensors)
        return self.backend.all_gather_coalesced(output_tensors, input_tensors, *more, **options)

    def _gathers(self, *tensors: Tensor) -> None:
        self.meter.add("weight", sum(tensor.nbytes for tensor in tensors) * (self.size - 1))


class Done:
    """A collective that has ended."""

    def wait(self) -> None:
        """Return at once."""


def load(world: World) -> Any:
    """Return the deepspeed package, quiet, and told to compile nothing. Raises JobError when it is missing."""
    if world.transport.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it asks nobody else
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError as error:
        raise JobError(f"engine: deepspeed: {error}; pip install 'sparsetrain[deepspeed]'") from error
    logger.setLevel(logging.ERROR)  # it warns of every optimizer that is not its own
    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning)
    # Used in inference only, and compiled at the first start: half a minute, and an error without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def stand_in(library: Any, world: World) -> StandIn:
    """Put ours in the place of DeepSpeed's communication. Every rank must call it; a single one needs no group yet."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=world.size)
    library.comm.comm.cdb = None  # of a group that is gone
    library.init_distributed(auto_mpi_discovery=False, verbose=False)
    library.comm.comm.cdb = StandIn(library.comm.comm.cdb, world.size, world.transport.meter)
    return library.comm.comm.cdb
