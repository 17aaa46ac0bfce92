"""One step of a small model before the run: does this DeepSpeed do with gradients what we take it to do?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain.config.errors import JobError
from sparsetrain.engine.deepspeed_stand_in import Moved
from sparsetrain.engine.engine import Parts


class Small(nn.Module):
    """A model whose gradient is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 3))
        self.bias = nn.Parameter(torch.ones(5))

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of all weights times the input, a number."""
        return batch[0] * (self.weight.sum() + self.bias.sum())


def rehearse(make: Callable[[Parts], Any], parts: Parts) -> None:
    """Take a step of a small model in the way that the run will take, and raise JobError where DeepSpeed does not do
    with it what we expect: a version whose insides have moved would train wrongly, not fail. Collective."""
    device, job = parts.world.transport.device, parts.job
    model = Small().to(device)
    plain = dataclasses.replace(job, train=dataclasses.replace(job.train, clip=0.0))
    small = Parts(
        model=model,
        parameters=dict(model.named_parameters()),
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        job=plain,
        world=parts.world,
        pull=lambda step: None,
    )
    problem = ""
    try:
        engine = make(small)
        engine.begin()
        engine.backward((torch.full((), parts.world.rank + 1.0, device=device, dtype=engine.dtype),), 1.0)
        if any(bool((engine.gradient(name) != parts.world.rank + 1.0).any()) for name in small.parameters):
            problem = "gradients are changed before the exchange"
        engine.step(1, {name: torch.full(shape, 0.5) for name, shape in engine.shapes.items()}, 1.0)
        with engine.whole():
            if any(bool((parameter != 0.5).any()) for parameter in small.parameters.values()):
                problem = problem or "a step does not follow the mean gradient"
        engine.close()
    except (AttributeError, TypeError, NotImplementedError, AssertionError, Moved) as error:
        problem = problem or f"{type(error).__name__}: {error}"
    if problem:
        import deepspeed

        raise JobError(f"engine: deepspeed {deepspeed.__version__} is not what this engine knows: {problem}")
