"""The answers of a run's model to the questions of methods that choose their mask before training."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsetrain.config.errors import JobError
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
        # With positive weights and inputs more weight is more flow, unless something subtracts, as a layer norm does.
        if any(bool((part < 0).any()) for part in found.values()) or not any(part.any() for part in found.values()):
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
        for number in range(count):
            position = number * state.job.train.batch_size * state.world.size
            batch = state.data.train_batch(state.sampler.indices(position))
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


def flow(model: Any, example: Tensor) -> dict[str, Tensor]:
    """Return dR/d|w| by parameter name, float64: R is the sum of the model's outputs for an input of ones like
    `example` with all parameters and buffers replaced by their absolute values, in evaluation mode.

    float64, because R is a product over all layers and leaves the range of float32. Where the input is whole numbers,
    ones are put in place of what embeddings give.
    """
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.abs_()
    if example.is_floating_point():
        ones = torch.ones_like(example, dtype=torch.float64)
    else:
        ones = torch.zeros_like(example)
        for module in twin.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    named = dict(twin.named_parameters())
    gradients = torch.autograd.grad(twin(ones).sum(), list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, gradients, strict=True))


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put the buffers, running statistics say, back to what they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
