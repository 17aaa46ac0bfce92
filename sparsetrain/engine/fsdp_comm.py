"""What FSDP2 sends, in our hands: weights are booked, and gradients are kept instead of reduced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsetrain.collective.meter import ByteMeter
from sparsetrain.collective.world import World
from sparsetrain.engine.rehearsal import Moved


class Buffers:
    """Gives FSDP2 the memory that it asks for."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an empty tensor."""
        return torch.empty(*size, dtype=dtype, device=device)


class Gather(Buffers):
    """Gathers weights as FSDP2 does by itself, and books what a rank sends for it."""

    def __init__(self, meter: ByteMeter) -> None:
        self.meter = meter

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        """Gather all ranks' `input_tensor`."""
        self.meter.add("weight", input_tensor.nbytes * (group.size() - 1))
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)


class Keep(Buffers):
    """Takes the place of FSDP2's reduce-scatter for the parameters `names`: keeps their gradients, and answers zeros.

    FSDP2 gives them as one tensor: for each rank its rows of every parameter in order, the last ones padded to as many
    rows as the others'. Gradients of several backward passes are added.
    """

    def __init__(self, world: World, names: Sequence[str], shapes: Mapping[str, torch.Size]) -> None:
        self.size = world.size
        self.names = list(names)
        self.shapes = {name: shapes[name] for name in names}
        self.kept: Tensor | None = None

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Keep `input_tensor`. Raises Moved where it is not of all parameters."""
        wanted = self.size * sum(self._padded(name).numel() for name in self.names)
        if input_tensor.numel() != wanted:
            raise Moved(
                f"FSDP2 has {input_tensor.numel()} gradient elements, not {wanted}: a parameter without a gradient "
                "(unused in a batch) cannot be told from others here"
            )
        kept = input_tensor.detach().float()
        self.kept = kept.clone() if self.kept is None else self.kept.add_(kept)
        output_tensor.zero_()

    def forget(self) -> None:
        """Forget all gradients."""
        self.kept = None

    def gradient(self, name: str) -> Tensor:
        """Return a parameter's whole gradient, zeros where there is none."""
        shape = self.shapes[name]
        if self.kept is None:
            return torch.zeros(shape)
        before = sum(self._padded(each).numel() for each in self.names[: self.names.index(name)])
        piece = self._padded(name)
        rows = self.kept.view(self.size, -1)[:, before : before + piece.numel()]
        return rows.reshape(self.size * piece[0], *shape[1:])[: shape[0]]

    def _padded(self, name: str) -> torch.Size:
        """Return the shape of a rank's rows of a parameter."""
        shape = self.shapes[name]
        return torch.Size((-(-shape[0] // self.size), *shape[1:]))
