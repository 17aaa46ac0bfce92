"""The answers of a run's model to the questions of methods that choose their mask before training."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsetrain.config.errors import JobError
from sparsetrain.engine.flow import flow, passes
from sparsetrain.engine.state import RunState


class ModelProbe:
    """See masks.probe.Probe. The batches are those of the run's first steps; weights and buffers stay as they are."""

    def __init__(self, state: RunState) -> None:
        self.state = state

    def gradient(self, batches: int) -> dict[str, Tensor]:
        """See Probe. Collective."""
        with _kept_buffers(self.state.model):
            local = self._sum(self._gradients(batch, False) for batch in self._batches(batches))
        return self._mean(local, batches)

    def hessian_gradient(self, batches: int) -> dict[str, Tensor]:
        """See Probe. Collective, twice: g is averaged before it meets the Hessian."""
        mean = self.gradient(batches)
        with _kept_buffers(self.state.model), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            local = self._sum(self._products(batch, mean) for batch in self._batches(batches))
        return self._mean(local, batches)

    def flow(self) -> dict[str, Tensor]:
        """See Probe. Raises JobError where nothing flows, as through a layer norm of equal inputs."""
        (batch,) = self._batches(1)
        found = flow(self.state.model, batch[0][:1])
        if not passes(found):
            raise JobError(
                "masks.method: synflow finds no flow through this model: a layer norm cancels an input of ones"
            )
        return {name: found[name] for name in self._names}

    @property
    def _names(self) -> list[str]:
        assert self.state.masks is not None
        return list(self.state.masks.parameters)

    def _batches(self, count: int) -> Iterator[tuple[Tensor, ...]]:
        state = self.state
        position = 0
        for _ in range(count):
            batch = state.data.train_batch(state.sampler.indices(position))
            position = state.sampler.after(position)
            yield tuple(part.to(state.world.transport.device) for part in batch)

    def _gradients(self, batch: tuple[Tensor, ...], keep_graph: bool) -> dict[str, Tensor]:
        parameters = [self.state.parameters[name] for name in self._names]
        loss = self.state.model.loss(batch)
        found = torch.autograd.grad(
            loss, parameters, create_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        return dict(zip(self._names, found, strict=True))

    def _products(self, batch: tuple[Tensor, ...], mean: dict[str, Tensor]) -> dict[str, Tensor]:
        inner = torch.stack([(mean[name] * part).sum() for name, part in self._gradients(batch, True).items()]).sum()
        parameters = [self.state.parameters[name] for name in self._names]
        found = torch.autograd.grad(inner, parameters, allow_unused=True, materialize_grads=True)
        return dict(zip(self._names, found, strict=True))

    def _sum(self, parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for part in parts:
            total = {name: total[name] + value if total else value for name, value in part.items()}
        return total

    def _mean(self, local: dict[str, Tensor], batches: int) -> dict[str, Tensor]:
        return self.state.world.transport.mean({name: part / batches for name, part in local.items()}, "mask")


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Generator[None]:
    """Put the buffers, running statistics say, back to what they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
