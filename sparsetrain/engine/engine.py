"""Between the loop and the optimizer: who holds weights and optimizer state, and takes the step."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.checkpoint import Tensors, load_model, load_optimizer, model_tensors, optimizer_tensors
from sparsetrain.masks.maskset import MaskSet

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What an engine is built from. `pull` adds to the mean gradients in `.grad` what methods ask for because of the
    weights alone."""

    model: Any
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    job: Job
    world: World
    pull: Callable[[int], None]


class Engine(abc.ABC):
    """Runs a model's backward and takes its steps; between the two the exchange replaces each rank's gradients by
    their mean. All ranks make the same calls.

    `shards`: weights or optimizer state are spread over the ranks, so that a checkpoint's is each rank's own.
    `gathers`: so are the weights, and only inside `whole` a parameter has all of its values. `moves`: a process can
    take what it holds into another group of ranks; else all begin anew from a checkpoint when one is lost. `packs`: it
    may hold of masked weights only those inside the update sets, see `compact`; outside of `whole` there are no others.
    """

    shards = False
    gathers = False
    packs = False
    moves = True

    def __init__(self, parts: Parts) -> None:
        self.model = parts.model
        self.parameters = parts.parameters
        self.optimizer = parts.optimizer
        self.pull = parts.pull
        self.others: dict[str, str] = {}  # masked weights that are held whole whatever is chosen, and why

    @classmethod
    def refuses(cls, job: Job) -> str:
        """Return why this engine does not train the job, as `path: what is wrong`; nothing where it does."""
        return ""

    @property
    def compact(self) -> frozenset[str]:
        """Return the weights of which only those inside the update sets are held now; `packs`: there may be some."""
        return frozenset()

    @abc.abstractmethod
    def begin(self) -> None:
        """Forget all gradients; the backward passes of a step follow."""

    @abc.abstractmethod
    def backward(self, batch: tuple[Tensor, ...], share: float) -> float:
        """Add a micro-batch's gradients, its mean loss taken times `share`; return that loss."""

    def gradient(self, name: str) -> Tensor:
        """Return this rank's gradient of a parameter since `begin`, zeros where no batch gave it one."""
        return gradient(self.parameters[name])

    def watch(self, wanted: bool) -> None:
        """Say whether `dense_gradient` will be asked for after the step that begins now."""
        return

    def dense_gradient(self, name: str) -> Tensor:
        """Return `gradient` in the parameter's whole shape, unmasked where `watch` has asked for it."""
        return self.gradient(name)

    def choose(self) -> list[str]:
        """Decide how layers multiply where that is open on some rank, and return a line for each of them; rank 0's say
        why. Falls on an exchange. Collective."""
        return []

    def shaped(self, name: str, mean: Tensor) -> Tensor:
        """Return a mean gradient as the parameter is held."""
        return mean

    def ways(self) -> dict[str, str]:
        """Return how layers multiply, by weight, where that was chosen."""
        return {}

    def go_on(self, ways: Mapping[str, str]) -> None:
        """Let layers multiply as they did when `ways` returned this, with the present masks; weights have to be loaded
        after it. Raises ValueError for a way that is none."""
        return

    def load(self, tensors: Tensors, source: str) -> None:
        """Take whole weights and buffers by name, after the masks that belong to them. Raises CheckpointError."""
        load_model(self.tensors(), tensors, source)

    @abc.abstractmethod
    def step(self, step: int, means: Mapping[str, Tensor], norm: float) -> None:
        """Take the step that makes `step` finished ones; `means` are the mean gradients, `norm` is theirs."""

    @abc.abstractmethod
    def skip(self) -> None:
        """Take no step, and forget the gradients."""

    def whole(self, change: bool = False) -> contextlib.AbstractContextManager[None]:
        """Return a context in which parameters have all their values; with `change` what is changed inside, on all
        ranks alike, stays."""
        return contextlib.nullcontext()

    def weights(self) -> Mapping[str, Tensor]:
        """Return the parameters' values by name, in their shapes, inside `whole`; with some in `compact` anywhere, and
        those are made when they are asked for."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def tensors(self) -> Tensors:
        """Return parameters and buffers by name, whole inside `whole`; tied weights appear once."""
        return model_tensors(self.model)

    def answer(self, ask: Callable[[Any], Answer]) -> Answer:
        """Return what `ask` says of the model, whose forward pass it may run; all ranks must ask as often as the others
        where weights are gathered."""
        return ask(self.model)

    def inputs(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a batch as the model takes it."""
        return batch

    def follow(self, old: MaskSet, new: MaskSet) -> None:
        """Bring what is kept beside the weights from the old to the new masks, after the weights."""
        return

    @property
    def transitions(self) -> torch.optim.Optimizer | None:
        """Return the optimizer whose state mask updates change by parameter; None where `follow` does it."""
        return self.optimizer

    def state(self) -> Tensors:
        """Return the optimizer's state."""
        return optimizer_tensors(self.optimizer, dict(self.parameters))

    def load_state(self, tensors: Tensors, whole: bool) -> None:
        """Put back what `state` returned; `whole`: at least one step had been taken. Raises CheckpointError."""
        load_optimizer(self.optimizer, dict(self.parameters), tensors, whole)

    def saved(self, folder: pathlib.Path, step: int, last: bool) -> str:
        """Write into the run folder what other tools want to read beside the checkpoint of a step, and return what
        went wrong, if anything; `last`: of the run. Collective."""
        return ""

    def close(self) -> None:
        """Let go of what is held beside Python's memory. No step comes after it."""
        return


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's gradient, zeros where the batch gave it none."""
    # A parameter that this batch did not use still has its place in the layout.
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
