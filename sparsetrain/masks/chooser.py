"""Who is active next: method, structure, distribution and schedule of a job, put together for a model's tensors."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsetrain import registry
from sparsetrain.config.check import check_masks
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.schedule import Span
from sparsetrain.masks.timing import timing


class Chooser:
    """Proposes masks; a pure function of its arguments, the same on all ranks.

    `parameters` are those that are masked, `everything` is the model's.
    """

    def __init__(
        self, config: Masks, parameters: Mapping[str, nn.Parameter], maskable: Sequence[str], seed: int, span: Span
    ) -> None:
        self.config = config
        self.seed = seed
        self.everything = parameters
        self.method, self.schedule = timing(config, span)
        self.distribution = config.distribution.build()
        self.structure = config.structure.build()
        check_masks(config)
        names = chosen(maskable, list(parameters), config.exclude)
        self.parameters = {name: parameters[name] for name in names}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.layouts = {name: self.structure.layout(name, shape) for name, shape in self.shapes.items()}
        self.rules = {name: rule for name in names if (rule := self._rule(name)) is not None}
        for pattern in config.rules:
            if not fnmatch.filter(names, pattern):
                raise JobError(f"masks.rules: {pattern} names no masked tensor{_among(pattern, names)}")

    def _rule(self, name: str) -> float | None:
        """Return the sparsity that the job's rules give a tensor; the first pattern that matches counts."""
        return next((rule for pattern, rule in self.config.rules.items() if fnmatch.fnmatch(name, pattern)), None)

    def first(self) -> MaskSet:
        """Return the masks of epoch 0. Raises JobError when not one weight would be left."""
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        total = sum(mask.numel() for mask in masks.values())
        target = 0.0 if self.method.starts_dense else self.config.sparsity
        moments = self._moments(MaskSet(masks, -1), weights, {}, target, 0.0)
        if not any(moment.count for moment in moments.values()) or not round((1.0 - self.config.sparsity) * total):
            raise JobError(f"masks.sparsity: {self.config.sparsity} leaves not one weight of the masked tensors")
        return self._sets({name: self.method.initial(moment) for name, moment in moments.items()}, moments, 0)

    def propose(
        self,
        masks: MaskSet,
        weights: Mapping[str, Tensor],
        signal: Mapping[str, Tensor],
        target: float,
        progress: float,
    ) -> MaskSet:
        """Return the masks of the next epoch. `progress` is the share of the schedule's span that is over."""
        moments = self._moments(masks, weights, signal, target, progress)
        free = {name: moment for name, moment in moments.items() if name not in self.rules}
        counts = self.method.allocate(free, {name: moment.count for name, moment in free.items()})
        moments |= {name: dataclasses.replace(free[name], count=count) for name, count in counts.items()}
        return self._sets(
            {name: self.method.update(moment) for name, moment in moments.items()}, moments, masks.epoch + 1
        )

    def _sets(self, forward: dict[str, Tensor], moments: Mapping[str, Moment], epoch: int) -> MaskSet:
        updates = {name: self.method.update_set(moments[name], mask) for name, mask in forward.items()}
        return MaskSet(forward, epoch, updates).reduced()

    def _moments(
        self,
        masks: MaskSet,
        weights: Mapping[str, Tensor],
        signal: Mapping[str, Tensor],
        target: float,
        progress: float,
    ) -> dict[str, Moment]:
        draft = {
            name: Moment(
                name=name,
                weight=weights[name],
                mask=masks.masks[name],
                layout=self.layouts[name],
                count=0,
                update_count=0,
                progress=progress,
                generator=generator_for(self.seed, name, masks.epoch + 1),
                signal=signal.get(name),
            )
            for name in self.parameters
        }
        counts = self.counts(target, draft)
        wider = self.method.update_sparsity(target)
        update_counts = counts if wider == target else self.counts(wider, draft)
        return {
            name: dataclasses.replace(moment, count=counts[name], update_count=update_counts[name])
            for name, moment in draft.items()
        }

    def counts(self, target: float, moments: Mapping[str, Moment]) -> dict[str, int]:
        """Return the active weights of each tensor at a target sparsity: rules first, the distribution for the rest."""
        final = self.config.sparsity
        if target == 0.0:
            return {name: parameter.numel() for name, parameter in self.parameters.items()}
        rest = {name: shape for name, shape in self.shapes.items() if name not in self.rules}

        def ranked() -> dict[str, tuple[Tensor, int]]:
            return {name: self._unit_scores(moments[name]) for name in rest}

        counts = self.distribution.counts(rest, target, ranked) if rest else {}
        for name, rule in self.rules.items():
            # On a ramp a tensor with a rule of its own climbs in step with the others.
            share = rule * (target / final if final else 0.0)
            counts[name] = round((1.0 - share) * self.parameters[name].numel())
        return {name: layout.whole(counts[name]) for name, layout in self.layouts.items()}

    def _unit_scores(self, moment: Moment) -> tuple[Tensor, int]:
        scores, among = moment.layout.pool(self.method.saliency(moment)), self.method.candidates(moment)
        flat = scores.flatten() if among is None else scores[moment.layout.active(among)]
        return flat, moment.layout.size


def chosen(maskable: Sequence[str], names: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the names of the tensors to mask, in model order: `maskable` without what `exclude` names.

    `first` and `last` exclude the first and the last of `maskable`. Raises JobError when nothing is left.
    """
    unknown = [name for name in maskable if name not in names]
    if unknown or not maskable:
        raise JobError(f"masks: the model's maskable tensors must be among its parameters (given {unknown})")
    ordered = [name for name in names if name in set(maskable)]
    ends = {"first": ordered[0], "last": ordered[-1]}
    patterns = [ends.get(pattern, pattern) for pattern in exclude]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise JobError(f"masks.exclude: {pattern} names no tensor{_among(pattern, [*ends, *ordered])}")
    kept = [name for name in ordered if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not kept:
        raise JobError(f"masks.exclude: {list(exclude)} leaves no tensor to mask")
    return kept


def _among(pattern: str, names: Sequence[str]) -> str:
    return f"; allowed: patterns of {', '.join(names)}{registry.nearest(pattern, list(names))}"
