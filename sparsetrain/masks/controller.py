"""The mask room's door: one object that holds the masks and changes them when the schedule says so."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain.config.coupling import Coupling
from sparsetrain.config.job import Masks
from sparsetrain.config.load import checked
from sparsetrain.masks import transition
from sparsetrain.masks.agreement import Gather, agree, agree_weights
from sparsetrain.masks.chooser import Chooser
from sparsetrain.masks.explored import Explored
from sparsetrain.masks.forces import Forces
from sparsetrain.masks.hidden import hidden
from sparsetrain.masks.lazy import Lazy
from sparsetrain.masks.learning import Learning
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import MaskMethod
from sparsetrain.masks.probe import Probe
from sparsetrain.masks.report import Report
from sparsetrain.masks.rewinding import Rewinding
from sparsetrain.masks.saved import fitting
from sparsetrain.masks.schedule import Span
from sparsetrain.masks.sources import Mean, Means, SparseMean, alone, alone_at
from sparsetrain.masks.timing import aims
from sparsetrain.masks.view import Single


class MaskController:
    """Chooses, applies and changes the masks of a model; knows no transport, only the callables it is given.

    `parameters` are all of the model's, in model order; `maskable` names those that may be masked one by one,
    `couplings` say what goes together where the structure removes neurons or heads. `gather` returns all ranks' bytes
    in rank order, `mean` the means over ranks of named tensors, `sparse_mean` those of the places that promise
    most; all are collective, and without them this is the only rank. With equal arguments every rank holds equal masks.
    `fresh` is False when the weights are pretrained.
    """

    def __init__(
        self,
        config: Masks,
        parameters: Mapping[str, nn.Parameter],
        *,
        maskable: Sequence[str],
        couplings: Sequence[Coupling] = (),
        seed: int,
        steps: int,
        gather: Gather | None = None,
        mean: Mean | None = None,
        sparse_mean: SparseMean | None = None,
        fresh: bool = True,
    ) -> None:
        self.config = config = checked(config)
        self.gather = gather or (lambda data: [data])
        self.span = Span(steps, config.begin, config.end, config.every)
        self.chooser = Chooser(config, parameters, maskable, couplings, seed, self.span)
        self.method, self.schedule = self.chooser.method, self.chooser.schedule
        self.parameters = self.chooser.parameters
        regulariser = config.regulariser.build() if config.regulariser is not None else None
        self.forces = Forces(self.method, regulariser, self.chooser)
        updates = self.schedule.updates() if self.method.changes else []
        means = Means(mean or alone, sparse_mean or alone_at)
        self.source = self.method.source(self.method, updates, means, self.chooser.layouts, self.span)
        if self.chooser.only_largest:
            self.source.rooms = self.chooser.rooms
        self.held: Mapping[str, Tensor] | None = None
        self.owed = False  # an update whose scores were not finite waits for the next step that can take it
        self.method.begin({name: parameter.detach() for name, parameter in self.parameters.items()})
        self.learning = None
        if self.method.learns_budget:
            self.learning = Learning(self.method, self.parameters, self.schedule, config.sparsity, seed)
        self.masks = self.chooser.first()
        self.explored = Explored(self.masks)
        self.rescales = config.rescale_init and fresh and self.learning is None
        if self.rescales:
            self._rescale()
        self.dormant = {name: torch.zeros_like(p.detach()) for name, p in self.parameters.items()}
        if not self.method.keeps_dormant:
            self.dormant = {}
        everything = {name: torch.ones_like(mask) for name, mask in self.masks.masks.items()}
        transition.apply(MaskSet(everything), self.masks, self.parameters, None, self.dormant)
        self.rewinding = None
        if self.method.rewinds:
            self.rewinding = Rewinding(self.chooser.everything, self.schedule.rewind)

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """Return the method's own parameters as `field/tensor`, empty for most: they take part in the exchange, and
        `join` gives them to the optimizer."""
        return self.learning.parameters if self.learning is not None else {}

    @property
    def learns(self) -> bool:
        """Return whether those parameters still make the forward pass, so that gradients are whole only after it."""
        return self.learning is not None and not self.masks.limits

    @property
    def limits(self) -> dict[str, Tensor]:
        """Return all update sets that leave something out: what a gradient exchange has to know."""
        return self.masks.limits | (self.learning.limits(self.masks) if self.learning is not None else {})

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the method's own parameters, where there are some, to an optimizer."""
        if self.learning is not None:
            self.learning.join(optimizer)

    def describe(self) -> str:
        """Return one line: the method, when masks change, and where its scores come from at what cost."""
        updates = self.schedule.updates() if self.method.changes else []
        when = f"{len(updates)} updates, steps {updates[0]} to {updates[-1]}" if updates else "no updates"
        source = type(self.source)
        return (
            f"{self.config.method.name}, {when}; scores from {source.__name__}, bytes a rank and update: {source.wire}"
        )

    @property
    def waits(self) -> bool:
        """Return whether `initialise` has to be called before the first step."""
        return self.method.at_init and self.masks.epoch == 0

    @torch.no_grad()
    def initialise(self, probe: Probe) -> None:
        """Choose the mask of a method that asks the model first; all weights are active until then. Collective."""
        first = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        proposed, final = self.masks, self.config.sparsity
        for target in self.method.rounds(final):
            with torch.enable_grad():
                signal = self.method.ask(probe)
            proposed = self.chooser.propose(dataclasses.replace(proposed, epoch=0), first, signal, target, 0.0)
            for name, mask in proposed.masks.items():
                self.parameters[name].copy_(torch.where(mask, first[name], 0.0))
        for name, weight in first.items():
            self.parameters[name].copy_(weight)
        self._commit(self._agreed(proposed), final, None, {})
        if self.rescales:
            self._rescale()

    def is_update(self, step: int) -> bool:
        """Return whether masks change after `step` finished steps."""
        return self.method.changes and (self.owed or self.schedule.is_update(step))

    def watches(self, step: int) -> bool:
        """Return whether `observe` wants the gradients of the step that makes `step` finished ones."""
        return self.method.changes and (self.source.watches(step) or self.owed)

    def asks_all(self, step: int) -> bool:
        """Return whether the step that makes `step` finished ones needs the gradients of all weights."""
        return self.watches(step) and self.source.dense

    @torch.no_grad()
    def observe(self, step: int, gradients: Mapping[str, Tensor]) -> None:
        """Look at a step's local gradients: unscaled, unmasked, averaged over accumulation, before they are exchanged.

        Does nothing in steps that the method does not watch. Collective: every rank must call it.
        """
        if self.watches(step):
            local = Lazy(self.parameters, lambda name: gradients[name])
            self.source.observe(step, self._weights(), local, self.masks)

    def step(self, step: int, optimizer: torch.optim.Optimizer | None) -> Report | None:
        """Change the masks if `step` finished steps call for it; weights and optimizer state follow.

        Two rounds cross ranks: digests of what each proposes, then a word from each that it has seen them agree. A
        rank that fails before the end of the second leaves all others where they were. Where scores are not finite,
        the update waits for the next step on all ranks alike. Collective: every rank must call it, also in steps
        that change nothing. Raises MaskDisagreement, and ValueError where `initialise` has been forgotten.
        """
        if self.waits:
            name = self.config.method.name
            raise ValueError(f"masks.method: {name} chooses before the first step: call initialise(probe)")
        if self.rewinding is not None:
            self.rewinding.reached(step)
        if not self.is_update(step):
            return None
        signal = self.source.take()
        self.owed = signal is None
        if signal is None:
            return None
        target, budget = aims(self.method, self.schedule, self.span, self.config.sparsity, step)
        progress = self.span.fraction(step)
        last = step >= max(self.schedule.updates())
        proposed = self.chooser.propose(self.masks, self._weights(), signal, target, progress, budget, last)
        return self._commit(self._agreed(proposed), target, optimizer, signal)

    def _agreed(self, proposed: MaskSet) -> MaskSet:
        """Return the masks that all ranks propose, after each has said that it has seen the others agree."""
        new = agree(proposed, self.gather, self.config.agreement)
        self.gather(new.epoch.to_bytes(8, "little"))
        return new

    @torch.no_grad()
    def _commit(
        self, new: MaskSet, target: float, optimizer: torch.optim.Optimizer | None, signal: Mapping[str, Tensor]
    ) -> Report:
        old, self.masks = self.masks, new
        fresh = self.chooser.view.fresh(old, new, self.parameters, self.chooser.seed)
        for name, weight in self.method.settle(old, new, self._weights(), signal).items():
            self.parameters[name].copy_(weight)
        transition.apply(old, new, self.parameters, optimizer, self.dormant)
        transition.begin(self.parameters, fresh)
        if self.method.forgets(old.sparsity(), new.sparsity()):
            transition.forget(optimizer)
        if self.learning is not None and new.limits:
            self.learning.rest(optimizer)
        if self.rewinding is not None:
            self.rewinding.rewind()
            self.mask_weights()
            transition.restart(optimizer)
        dropped = sum(int((old.masks[name] & ~mask).sum()) for name, mask in new.masks.items())
        grown = sum(int((mask & ~old.masks[name]).sum()) for name, mask in new.masks.items())
        churn = grown / max(1, sum(new.counts().values()))
        # A dense beginning is no exploration: what counts is what sparse masks have held.
        self.explored = Explored(new) if old.sparsity() == 0.0 else self.explored
        self.explored.add(new)
        explored = self.explored.fraction()
        kept, units = self.chooser.view.units(new.masks)
        out = 1.0 - kept / units
        rewound = self.rewinding is not None
        return Report(new.epoch, dropped, grown, churn, new.sparsity(), target, out, explored, old, new, rewound)

    def checks(self, step: int) -> bool:
        """Return whether `check` compares after `step` finished steps."""
        return step % self.config.agreement_every == 0

    def check(self, step: int) -> None:
        """Compare all ranks' masks and weights every `agreement_every` steps; differences raise Disagreement, or are
        overwritten by rank 0's. Collective; call it only where ranks must hold equal weights."""
        if self.checks(step):
            self.masks = agree(self.masks, self.gather, self.config.agreement)
            everything = {**self.chooser.everything, **self.learned}
            weights = {name: parameter.detach() for name, parameter in everything.items()}
            agree_weights(weights, self.gather, self.config.agreement)

    def forward(self, step: int | None = None) -> contextlib.AbstractContextManager[None]:
        """Return a context: inside, weights are what the forward pass uses; afterwards they have their values back.

        Forward and backward belong inside, with the number of the step that they finish, and so does evaluation,
        without one: nothing is drawn then. Free where the forward set is the update set.
        """
        if self.learning is not None and self.learns:
            return self.learning.forward(step)
        return hidden(self.masks, self.parameters)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set the weights outside the update sets to zero; `where`, because 0 * nan is nan."""
        for name, update in self.masks.limits.items():
            parameter = self.parameters[name]
            if parameter.shape == update.shape:  # else there are no others
                parameter.copy_(torch.where(update, parameter, 0.0))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients outside the update sets to zero."""
        parameters = {**self.parameters, **self.learned}
        for name, update in self.limits.items():
            parameter = parameters[name]
            # Of another shape it is of active weights alone.
            if parameter.grad is not None and parameter.grad.shape == update.shape:
                parameter.grad = torch.where(update, parameter.grad, 0.0)

    @torch.no_grad()
    def pull(self, step: int) -> None:
        """Add to the mean gradients what method and regulariser ask for because of the weights alone, on all ranks
        alike, in the step that makes `step` finished ones."""
        if self.learning is not None and self.learns:
            self.learning.pull(step)
        self.forces.add(self.masks, step)

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks share: {"packed": bits by name, "epoch": int, "dormant": weights by name, "explored":
        bits by name, "method": tensors, "rewind": weights by name}; schedule and generators follow from job and
        epoch."""
        return {
            "packed": self.masks.packed(),
            "epoch": self.masks.epoch,
            "dormant": dict(self.dormant),
            "explored": self.explored.packed(),
            "method": self.method.state(),
            "rewind": self.rewinding.state() if self.rewinding is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned. Raises ValueError when it does not fit the model."""
        self.masks = MaskSet.from_packed(state["packed"], self.masks.masks, int(state["epoch"]))
        self.explored = Explored(self.masks)
        if state.get("explored"):
            self.explored.load(state["explored"])
        saved = state.get("dormant", {})
        self.dormant = {name: fitting(f"dormant/{name}", saved.get(name), like) for name, like in self.dormant.items()}
        self.method.load_state(dict(state.get("method", {})))
        if self.rewinding is not None:
            self.rewinding.load_state(state.get("rewind", {}))

    def rank_state(self) -> dict[str, Tensor]:
        """Return what this rank keeps between updates; it belongs into a file of this rank. The mean over ranks of
        each tensor is what counts."""
        return {**self.source.state(), "owed": torch.tensor([float(self.owed)])}

    def newcomer(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the `rank_state` of a rank that joins, from that of one that was there."""
        kept = {key: tensor for key, tensor in state.items() if key != "owed"}
        return {**self.source.newcomer(kept), "owed": state["owed"]}

    def load_rank_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `rank_state` returned. Raises ValueError when it does not fit the model."""
        kept = {key: tensor for key, tensor in state.items() if key != "owed"}
        for key, tensor in kept.items():
            name = key.rpartition("/")[2]
            shape = self.masks.masks[name].shape if name in self.masks.masks else tensor.shape
            if tensor.shape != shape:
                raise ValueError(f"scores of {name}: {tuple(tensor.shape)}, not {tuple(shape)}")
        owed = state.get("owed", torch.zeros(1))
        if not bool(torch.isfinite(owed).all()):
            raise ValueError("scores/owed is not finite")
        self.owed = bool(owed.sum())
        self.source.load_state(kept)

    def hold(self, weights: Mapping[str, Tensor]) -> None:
        """Look at weights there, in their shapes, where parameters hold those of the update sets alone."""
        self.held = weights

    @property
    def piecewise(self) -> bool:
        """Return whether an update looks at `hold`'s weights one at a time and writes none of them: who holds them
        brings them to the new masks."""
        own = self.learning is None and self.rewinding is None and not self.dormant
        plain = isinstance(self.chooser.view, Single) and type(self.method).settle is MaskMethod.settle
        return self.held is not None and own and plain

    def _weights(self) -> Mapping[str, Tensor]:
        """Return the weights, the dormant in their places."""
        if self.held is not None:
            return self.held
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return weights | {name: weights[name] + asleep for name, asleep in self.dormant.items()}

    @torch.no_grad()
    def _rescale(self) -> None:
        """Divide weights by sqrt(density of their inputs): outputs begin with a dense layer's variance."""
        for name, density in self.chooser.view.inputs(self.masks.masks).items():
            if density > 0:
                self.parameters[name].div_(density**0.5)
