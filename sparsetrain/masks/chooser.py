"""Who is active next: method, structure, distribution and schedule of a job, put together for a model's tensors."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsetrain import registry
from sparsetrain.config.check import check_masks
from sparsetrain.config.coupling import Coupling
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.coupled import Coupled, declared
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import MaskMethod, Moment
from sparsetrain.masks.schedule import Span
from sparsetrain.masks.timing import aims, timing
from sparsetrain.masks.view import Single, View


class Chooser:
    """Proposes masks; a pure function of its arguments, the same on all ranks.

    `parameters` are those that are masked, `everything` is the model's; methods choose by what `view` makes of them,
    and `shapes`, `layouts` and `rules` are of its subjects.
    """

    def __init__(
        self,
        config: Masks,
        parameters: Mapping[str, nn.Parameter],
        maskable: Sequence[str],
        couplings: Sequence[Coupling],
        seed: int,
        span: Span,
    ) -> None:
        self.config = config
        self.seed, self.span = seed, span
        self.everything = parameters
        self.method, self.schedule = timing(config, span)
        self.distribution = config.distribution.build()
        self.structure = config.structure.build()
        check_masks(config)
        self.view = self._view(maskable, couplings)
        self.parameters = {name: parameters[name] for name in self.view.parameters}
        self.layouts = self.view.layouts
        self.shapes = {name: layout.shape for name, layout in self.layouts.items()}
        names = list(self.shapes)
        self.rules = {name: rule for name in names if (rule := self._rule(name)) is not None}
        for pattern in config.rules:
            if not fnmatch.filter(names, pattern):
                raise JobError(f"masks.rules: {pattern} names no masked tensor{_among(pattern, names)}")

    def _view(self, maskable: Sequence[str], couplings: Sequence[Coupling]) -> View:
        """Return how methods see the model: the couplings of the structure's kind, or `maskable` one by one."""
        kind, exclude = self.structure.couples, self.config.exclude
        if kind:
            found = {each.name: each for each in declared(couplings, kind, self.config.structure.name)}
            kept = chosen(list(found), list(found), exclude)
            return Coupled(self.structure, [found[name] for name in kept], self.everything)
        names = chosen(maskable, list(self.everything), exclude)
        return Single(self.structure, {name: tuple(self.everything[name].shape) for name in names})

    def _rule(self, name: str) -> float | None:
        """Return the sparsity that the job's rules give a tensor; the first pattern that matches counts."""
        return next((rule for pattern, rule in self.config.rules.items() if fnmatch.fnmatch(name, pattern)), None)

    def first(self) -> MaskSet:
        """Return the masks of epoch 0. Raises JobError when not one weight would be left."""
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        total = sum(math.prod(shape) for shape in self.shapes.values())
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
        budget: float | None = None,
        last: bool = False,
    ) -> MaskSet:
        """Return the masks of the next epoch, at sparsity `target`. `progress` is the share of the schedule's span that
        is over, `budget` the schedule's sparsity where that is another one, `last` whether no update follows."""
        moments = self._moments(masks, weights, signal, target, progress, budget)
        moments = {name: dataclasses.replace(moment, last=last) for name, moment in moments.items()}
        free = {name: moment for name, moment in moments.items() if name not in self.rules}
        counts = self.method.allocate(free, {name: moment.count for name, moment in free.items()})
        moments |= {name: dataclasses.replace(free[name], count=count) for name, count in counts.items()}
        return self._sets(
            {name: self.method.update(moment) for name, moment in moments.items()}, moments, masks.epoch + 1
        )

    def _sets(self, forward: dict[str, Tensor], moments: Mapping[str, Moment], epoch: int) -> MaskSet:
        updates = {name: self.method.update_set(moments[name], mask) for name, mask in forward.items()}
        return MaskSet(self.view.scatter(forward), epoch, self.view.scatter(updates)).reduced()

    def _moments(
        self,
        masks: MaskSet,
        weights: Mapping[str, Tensor],
        signal: Mapping[str, Tensor],
        target: float,
        progress: float,
        budget: float | None = None,
    ) -> dict[str, Moment]:
        weights, signals, forward = self.view.gather(weights), self.view.gather(signal), self.view.masks(masks.masks)
        draft = {
            name: Moment(
                name=name,
                weights=weights,
                mask=forward[name],
                layout=layout,
                count=0,
                update_count=0,
                budget=0,
                progress=progress,
                generator=generator_for(self.seed, name, masks.epoch + 1),
                signals=signals,
            )
            for name, layout in self.layouts.items()
        }
        counts = self.counts(target, draft)
        wider = self.method.update_sparsity(target)
        update_counts = counts if wider == target else self.counts(wider, draft)
        budgets = counts if budget is None or budget == target else self.counts(budget, draft)
        return {
            name: dataclasses.replace(
                moment, count=counts[name], update_count=update_counts[name], budget=budgets[name]
            )
            for name, moment in draft.items()
        }

    @property
    def only_largest(self) -> bool:
        """Return whether of a signal nothing matters but the largest magnitudes, as many as will be active."""
        counted = type(self.method).allocate is MaskMethod.allocate and self.config.distribution.name != "global"
        single = all(layout.groups * layout.size == 1 for layout in self.layouts.values())
        return self.method.grows_largest and counted and single and isinstance(self.view, Single)

    def rooms(self, step: int) -> dict[str, int]:
        """Return how many weights each tensor has after an update at `step`, where `only_largest`."""
        return self.counts(aims(self.method, self.schedule, self.span, self.config.sparsity, step)[0], {})

    def counts(self, target: float, moments: Mapping[str, Moment]) -> dict[str, int]:
        """Return the active weights of each tensor at a target sparsity: rules first, the distribution for the rest.

        Of couplings all keep at least one unit.
        """
        final = self.config.sparsity
        if target == 0.0:
            return {name: math.prod(shape) for name, shape in self.shapes.items()}
        rest = {name: shape for name, shape in self.shapes.items() if name not in self.rules}

        def ranked() -> dict[str, tuple[Tensor, int]]:
            return {name: self._unit_scores(moments[name]) for name in rest}

        counts = self.distribution.counts(rest, target, ranked) if rest else {}
        for name, rule in self.rules.items():
            # On a ramp a tensor with a rule of its own climbs in step with the others.
            share = rule * (target / final if final else 0.0)
            counts[name] = round((1.0 - share) * math.prod(self.shapes[name]))
        least = {name: layout.size if self.view.at_least_one_unit else 0 for name, layout in self.layouts.items()}
        return {name: max(least[name], layout.whole(counts[name])) for name, layout in self.layouts.items()}

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
