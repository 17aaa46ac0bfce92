"""One step of a small model before the run: does an engine's library do with gradients what we take it to do?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsetrain.config.errors import JobError
from sparsetrain.engine.engine import Engine, Parts

MEANS = {"weight": 0.5, "bias": 0.25}


class Moved(RuntimeError):
    """The library does something in another way than the one that an engine of ours stands in for."""


# What other code raises when it is not what it was, or is given what it does not take; a lost rank is none of these.
EXPECTED = (
    AttributeError,
    TypeError,
    NotImplementedError,
    AssertionError,
    ValueError,
    ArithmeticError,
    ImportError,
    Moved,
)


class Small(nn.Module):
    """A model whose gradients are its input and twice that; neither of its tensors splits evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7, 3))
        self.bias = nn.Parameter(torch.ones(5))

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return a number."""
        return batch[0] * (self.weight.sum() + 2 * self.bias.sum())


def rehearse(make: Callable[[Parts], Engine], parts: Parts, library: str) -> None:
    """Take a step of a small model in the way that the run will take, with the engine that `make` builds, and raise
    JobError where it does not do what we expect: a version of the `library` whose insides have moved would train
    wrongly, not fail. Collective."""
    rank, device = parts.world.rank, parts.world.transport.device
    model = Small().to(device)
    parameters = dict(model.named_parameters())
    small = Parts(
        model=model,
        parameters=parameters,
        optimizer=torch.optim.SGD(parameters.values(), lr=1.0),
        job=parts.job,
        world=parts.world,
        pull=lambda step: None,
    )
    problem = ""
    try:
        engine = make(small)
        engine.begin()
        engine.backward(engine.inputs((torch.full((), rank + 1.0, device=device),)), 1.0)
        wanted = {"weight": rank + 1.0, "bias": 2 * (rank + 1.0)}
        if any(bool((engine.gradient(name) != value).any()) for name, value in wanted.items()):
            problem = "gradients are changed before the exchange"
        means = {name: torch.full(engine.gradient(name).shape, value, device=device) for name, value in MEANS.items()}
        engine.step(1, means, 0.0)
        with engine.whole():
            if any(bool((parameters[name] != 1 - value).any()) for name, value in MEANS.items()):
                problem = problem or "a step does not follow the mean gradient"
        engine.close()
    except EXPECTED as error:
        problem = problem or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    # What one rank alone has met, such as a report that only rank 0 makes, ends all in the same way.
    told = [each.decode() for each in parts.world.transport.gather_bytes(problem.encode())]
    if problem := next(filter(None, told), ""):
        raise JobError(f"engine: {library} is not what this engine knows: {problem}")
