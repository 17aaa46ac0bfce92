"""Whole weights and a torch optimizer on every rank."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsetrain.engine.engine import Engine, Parts


class TorchEngine(Engine):
    """Torch's own optimizers, with all weights and all of their state on every rank, as in DistributedDataParallel."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__(parts)
        self.train = parts.job.train
        self.device = parts.world.transport.device

    def begin(self) -> None:
        """See Engine."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, batch: tuple[Tensor, ...], share: float) -> float:
        """See Engine."""
        with self._autocast():
            loss = self.model.loss(batch)
        (loss * share if share != 1.0 else loss).backward()
        return float(loss.detach())

    def step(self, step: int, means: Mapping[str, Tensor], norm: float) -> None:
        """See Engine."""
        for name, parameter in self.parameters.items():
            parameter.grad = means[name].to(parameter.dtype)
        self.local_step(step, norm)

    def local_step(self, step: int, norm: float) -> None:
        """Take a step with the gradients that are there; `norm` is theirs."""
        clip = self.train.clip
        # Most of a run's gradients are within the limit, and a factor of 1 would be a pass over all of them.
        if clip and norm >= clip:
            total = torch.tensor(norm, device=self.device)
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), clip, total)
        self.pull(step)
        self.optimizer.step()

    def skip(self) -> None:
        """See Engine: `begin` forgets the gradients."""

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.train.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
