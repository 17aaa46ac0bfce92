"""torch.distributed as a transport: gloo on CPU, nccl on CUDA."""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist

# Imported before there is a process group: these functions take the default group of that moment as their default
# arguments, which would keep it, and its threads, alive until the interpreter ends; gloo then aborts now and then.
import torch.distributed.nn.functional
from torch import Tensor

from sparsetrain.collective.transport import Transport
from sparsetrain.collective.world import World


class TorchTransport(Transport):
    """The default process group, or `group`. The group's own time limit bounds every call."""

    def __init__(self, device: torch.device | None = None, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(dist.get_rank(group), dist.get_world_size(group), device)
        self.group = group

    def _all_reduce(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, group=self.group)

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self.group)
        return parts

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        dist.broadcast(tensor, source, group=self.group)


def torch_world(device: torch.device | None = None) -> World:
    """Return the world of the default process group, for loops of your own; call it after init_process_group."""
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        node=socket.gethostname(),
        transport=TorchTransport(device),
    )
