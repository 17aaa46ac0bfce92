"""The mask room's door: one object that holds the masks and changes them when the schedule says so."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.config.load import checked
from sparsetrain.masks import transition
from sparsetrain.masks.agreement import Gather, agree
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.schedule import MaskSchedule


@dataclasses.dataclass(frozen=True)
class Report:
    """One mask update: epoch reached, weights dropped and grown, grown / active, sparsity aimed at and had."""

    epoch: int
    dropped: int
    grown: int
    churn: float
    sparsity: float
    target_sparsity: float
    old: MaskSet
    new: MaskSet


class MaskController:
    """Chooses, applies and changes the masks of a model; knows no transport, only the `gather` it is given.

    `parameters` are all of the model's, in model order; `maskable` names those that may be masked. With equal
    arguments every rank holds equal masks. `fresh` is False when the weights are pretrained.
    """

    def __init__(
        self,
        config: Masks,
        parameters: Mapping[str, nn.Parameter],
        *,
        maskable: Sequence[str],
        seed: int,
        steps: int,
        gather: Gather | None = None,
        fresh: bool = True,
    ) -> None:
        self.config = config = checked(config)
        self.seed = seed
        self.gather = gather or (lambda data: [data])
        self.method = config.method.build()
        self.distribution = config.distribution.build()
        self.schedule = MaskSchedule(steps, config.begin, config.end, config.every)
        unknown = [name for name in maskable if name not in parameters]
        if unknown or not maskable:
            raise JobError(f"masks: the model's maskable tensors must be among its parameters (given {unknown})")
        chosen = [name for name in maskable if not any(fnmatch.fnmatch(name, p) for p in config.exclude)]
        if not chosen:
            raise JobError(f"masks.exclude: {list(config.exclude)} leaves no tensor to mask")
        self.parameters = {name: parameters[name] for name in parameters if name in chosen}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        counts = self.distribution.counts(self.shapes, config.sparsity)
        if not any(counts.values()):
            raise JobError(f"masks.sparsity: {config.sparsity} leaves not one weight of the masked tensors")
        first = {
            name: self.method.initial(parameter.detach(), counts[name], generator_for(seed, name, 0))
            for name, parameter in self.parameters.items()
        }
        self.masks = MaskSet(first, 0)
        if config.rescale_init and fresh:
            self._rescale()
        self.mask_weights()

    def is_update(self, step: int) -> bool:
        """Return whether masks change after `step` finished steps."""
        return self.method.changes and self.schedule.is_update(step)

    def needs_gradient(self, step: int) -> bool:
        """Return whether the update after `step` finished steps wants the mean gradient of the masked tensors."""
        return self.is_update(step) and self.method.scores == "mean_gradient"

    def step(
        self, step: int, mean_gradient: Callable[[], dict[str, Tensor]], optimizer: torch.optim.Optimizer | None
    ) -> Report | None:
        """Change the masks if `step` finished steps call for it; weights and optimizer state follow.

        `mean_gradient` is asked only where the method needs it. Collective: every rank must call it, and the new
        masks are used only after all digests agree. Raises MaskDisagreement.
        """
        if not self.is_update(step):
            return None
        target = self.method.sparsity(self.config.sparsity, self.schedule.ramp(step))
        proposed = self._propose(step, target, mean_gradient() if self.needs_gradient(step) else {})
        new = agree(proposed, self.gather, self.config.agreement)
        old, self.masks = self.masks, new
        transition.apply(old, new, self.parameters, optimizer)
        dropped = sum(int((old.masks[name] & ~mask).sum()) for name, mask in new.masks.items())
        grown = sum(int((mask & ~old.masks[name]).sum()) for name, mask in new.masks.items())
        churn = grown / max(1, sum(new.counts().values()))
        return Report(new.epoch, dropped, grown, churn, new.sparsity(), target, old, new)

    def _propose(self, step: int, target: float, gradients: Mapping[str, Tensor]) -> MaskSet:
        counts = self.distribution.counts(self.shapes, target)
        epoch = self.masks.epoch + 1
        masks = {}
        for name, parameter in self.parameters.items():
            moment = Moment(
                weight=parameter.detach(),
                mask=self.masks.masks[name],
                gradient=gradients.get(name),
                count=counts[name],
                progress=self.schedule.fraction(step),
                generator=generator_for(self.seed, name, epoch),
            )
            masks[name] = self.method.update(moment)
        return MaskSet(masks, epoch)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set the weights outside the masks to zero; `where`, because 0 * nan is nan."""
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.where(self.masks.masks[name], parameter, 0.0))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients outside the masks to zero."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                parameter.grad = torch.where(self.masks.masks[name], parameter.grad, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return {"packed": bits by name, "epoch": int}; schedule and generators follow from job and epoch."""
        return {"packed": self.masks.packed(), "epoch": self.masks.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned. Raises ValueError when it does not fit the model."""
        self.masks = MaskSet.from_packed(state["packed"], self.masks.masks, int(state["epoch"]))

    @torch.no_grad()
    def _rescale(self) -> None:
        """Divide masked weights by sqrt(density): a sparse layer's outputs begin with a dense one's variance."""
        for name, parameter in self.parameters.items():
            density = self.masks.counts()[name] / parameter.numel()
            if density > 0:
                parameter.div_(density**0.5)
