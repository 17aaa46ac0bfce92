"""Couplings as tensors: a unit's rows, biases and columns side by side, chosen together and masked together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.errors import JobError
from sparsetrain.masks.generator import generator_for
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.structures.base import Structure
from sparsetrain.masks.view import Fresh, Tensors, View


class Coupled(View):
    """Each coupling is one subject of [units, weights of a unit]: its slices' weights, laid side by side.

    A weight is active where the units of all couplings that hold it are kept. So every coupling keeps at least one
    unit: then a unit is kept exactly where one of its weights is active, and parameters' masks say all.
    """

    at_least_one_unit = True

    def __init__(
        self, structure: Structure, couplings: Sequence[Coupling], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self.makes = {each.name: [(s.parameter, places_of(each, s, shapes)) for s in each.makes] for each in couplings}
        self.reads = {each.name: [(s.parameter, places_of(each, s, shapes)) for s in each.reads] for each in couplings}
        check_apart(couplings)
        held = {parameter for slices in self._slices().values() for parameter, _ in slices}
        self.parameters = [name for name in parameters if name in held]
        self.like = {name: parameters[name] for name in self.parameters}
        self.layouts = {}
        for name, slices in self._slices().items():
            units = slices[0][1].shape[0]
            self.layouts[name] = structure.layout(name, (units, sum(places.shape[1] for _, places in slices)))

    def _slices(self) -> dict[str, list[tuple[str, Tensor]]]:
        return {name: [*made, *self.reads[name]] for name, made in self.makes.items()}

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """See View; on the CPU."""
        flat = {name: tensor.detach().reshape(-1).cpu() for name, tensor in tensors.items()}
        if not flat:
            return {}
        return {
            name: torch.cat([flat[parameter][places] for parameter, places in slices], dim=1)
            for name, slices in self._slices().items()
        }

    def masks(self, masks: Mapping[str, Tensor]) -> Tensors:
        """See View: a unit is kept where one of its weights is active."""
        return {name: mask.any(1, keepdim=True).expand_as(mask) for name, mask in self.gather(masks).items()}

    def scatter(self, chosen: Mapping[str, Tensor]) -> Tensors:
        """See View: a weight is active where all its units are kept."""
        flat = {name: torch.ones(like.numel(), dtype=torch.bool) for name, like in self.like.items()}
        for name, slices in self._slices().items():
            dropped = ~chosen[name].any(1)
            for parameter, places in slices:
                flat[parameter][places[dropped]] = False
        return {name: flat[name].view(like.shape).to(like.device) for name, like in self.like.items()}

    def add(self, figures: Mapping[str, Tensor]) -> Tensors:
        """See View."""
        flat = {name: torch.zeros(like.numel(), dtype=like.dtype) for name, like in self.like.items()}
        for name, slices in self._slices().items():
            parts = figures[name].split([places.shape[1] for _, places in slices], dim=1)
            for (parameter, places), part in zip(slices, parts, strict=True):
                flat[parameter].index_add_(0, places.flatten(), part.flatten().to(flat[parameter]))
        return {name: _shaped(flat[name], like) for name, like in self.like.items()}

    def inputs(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """See View: the share of the units that a parameter reads from which is kept."""
        shares = dict.fromkeys(self.parameters, 1.0)
        for name, mask in self.masks(masks).items():
            for parameter, _ in self.reads[name]:
                shares[parameter] *= int(mask[:, 0].sum()) / len(mask)
        return shares

    def fresh(self, old: MaskSet, new: MaskSet, weights: Mapping[str, Tensor], seed: int) -> Fresh:
        """See View: what makes a grown unit's output is drawn anew, what reads it stays 0.

        A unit that makes nothing and that nothing reads has no gradient, and would have none for ever. So the model
        computes as before, and the unit can learn at once. Values are uniform, with the mean and standard deviation
        of the parameter's active weights: for a norm's gains that is about 1, for weights about 0.
        """
        before, after = (self.masks({n: each.update(n) for n in self.parameters}) for each in (old, new))
        made, read = (
            {name: torch.zeros(like.numel(), dtype=torch.bool) for name, like in self.like.items()} for _ in range(2)
        )
        for name in self.layouts:
            grown = after[name][:, 0] & ~before[name][:, 0]
            for places, slices in ((made, self.makes[name]), (read, self.reads[name])):
                for parameter, where in slices:
                    places[parameter][where[grown]] = True
        return {
            name: (places, _draw(weights[name], old.update(name), generator_for(seed, f"fresh/{name}", new.epoch)))
            for name, place in made.items()
            if bool((places := _shaped(place & ~read[name], weights[name]) & new.update(name)).any())
        }


def declared(couplings: Sequence[Coupling], kind: str, structure: str) -> list[Coupling]:
    """Return the couplings of one kind. Raises JobError when the model declares none, or two of one name."""
    found = [each for each in couplings if each.kind == kind]
    if not found:
        kinds = ", ".join(sorted({each.kind for each in couplings})) or "none at all"
        raise JobError(
            f"masks.structure: {structure} needs a model whose couplings() name {kind}s, and this one names {kinds}; "
            "allowed: such a model, or a structure of single tensors (row, block, unstructured, ...)"
        )
    if len({each.name for each in found}) < len(found):
        raise JobError("masks.structure: two couplings of the model have the same name; allowed: a name for each")
    return found


def places_of(coupling: Coupling, part: Slice, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Return the flat positions of a slice's weights, int64 [units, weights]."""
    shape = shapes.get(part.parameter)
    if shape is None:
        raise _misfit(coupling, part, "is no trained parameter of the model")
    if not 0 <= part.axis < len(shape):
        raise _misfit(coupling, part, f"has no axis {part.axis}")
    length, pieces = shape[part.axis], part.parts * coupling.units
    if pieces < 1 or length % pieces:
        raise _misfit(
            coupling, part, f"has {length} along axis {part.axis}, not {part.parts} x {coupling.units} equal runs"
        )
    places = torch.arange(math.prod(shape)).view(shape).movedim(part.axis, 0)
    runs = places.reshape(part.parts, coupling.units, -1)
    return runs.transpose(0, 1).reshape(coupling.units, -1)


def check_apart(couplings: Sequence[Coupling]) -> None:
    """Raise JobError where two couplings hold one axis of one parameter, or one makes nothing."""
    axes: dict[tuple[str, int], str] = {}
    for each in couplings:
        if not each.makes:
            raise JobError(f"masks.structure: the coupling {each.name} makes nothing; allowed: at least one slice")
        for part in (*each.makes, *each.reads):
            if (part.parameter, part.axis) in axes:
                other = axes[part.parameter, part.axis]
                raise _misfit(each, part, f"has its axis {part.axis} in the coupling {other} already")
            axes[part.parameter, part.axis] = each.name


def _misfit(coupling: Coupling, part: Slice, reason: str) -> JobError:
    return JobError(
        f"masks.structure: in the model's coupling {coupling.name}, {part.parameter} {reason}; "
        "allowed: slices as docs/bring-your-own.md says"
    )


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    return flat.view(like.shape).to(like.device)


def _draw(weight: Tensor, active: Tensor, generator: torch.Generator) -> Tensor:
    """Return values like the active weights. float64 and uniform: the same bits on every processor."""
    kept = weight.detach()[active].double().cpu()
    mean, deviation = kept.mean(), kept.var(correction=0).sqrt()
    lots = 2.0 * torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 1.0
    return (mean + 3.0**0.5 * deviation * lots).to(weight)
