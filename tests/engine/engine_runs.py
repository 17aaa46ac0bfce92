"""Runs of engines that spread weights or optimizer state: beside the library alone, and killed in between."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from small import run_and_die

from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer

Weights = dict[str, torch.Tensor]


def quiet(line: str) -> None:
    pass


def ours(world: World, what: Job, folder: str) -> Weights:
    """Return the weights after all steps of our loop."""
    trainer = Trainer(build(what, world), pathlib.Path(folder), quiet)
    for _ in range(what.train.steps):
        trainer.train_step()
    with trainer.state.engine.whole():
        found = {name: parameter.detach().clone() for name, parameter in trainer.state.parameters.items()}
    trainer.close("finished")
    return found


def differing(world: World, folder: str, forms: Mapping[str, Job], stock: Callable[[World, Job], Weights]) -> list[str]:
    """Return which weights of which form are not those of the library alone, as `stock` trains them."""
    found = []
    for form, what in forms.items():
        mine, theirs = ours(world, what, folder), stock(world, what)
        first = dict(what.model.build().named_parameters())
        assert any(not torch.equal(first[name].to(weight.dtype), weight) for name, weight in mine.items())
        found += [f"{form}: {name}" for name, weight in theirs.items() if not torch.equal(weight, mine[name])]
    return found


def trained(
    world: World,
    folder: pathlib.Path,
    what: Job,
    outside_of: Callable[[Any], Iterable[torch.Tensor]],
    stop: int | None = None,
) -> dict[str, Any]:
    """Train to the end, or die in the step after `stop`; the result, and the largest of what `outside_of` the state
    finds outside its masks."""
    said: list[str] = []
    trainer = Trainer(build(what, world), folder, said.append)
    if stop is not None:
        run_and_die(trainer, stop)
        trainer.state.close()
        return {}
    result = trainer.run()
    assert trainer.state.masks is not None
    outside = [float(abs(tensor).max()) for tensor in outside_of(trainer.state)]
    epoch = trainer.state.masks.masks.epoch
    trainer.close("finished")
    return {**result, "outside": outside, "epoch": epoch, "said": said}
