"""Which layers hand their outputs to one other alone, unit by unit: units that are out need not be there at all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.compute.layer import Layer
from sparsetrain.compute.ways.base import Way
from sparsetrain.config.coupling import Coupling


@dataclasses.dataclass
class Pair:
    """Givers make `units` units together, each in its own number of parts, and `reader` takes them in: an MLP's two
    matrices, gate and up before down, the q, k and v of heads before their projection."""

    units: int
    givers: list[tuple[Layer, int]]
    reader: Layer
    compared: tuple[Way | None, ...] = ()
    equal: bool = False

    def narrow(self) -> bool:
        """Return whether all give and take the same units now, so that the others need not be there. A gradient of all
        weights needs those, too."""
        layers = [self.reader, *(giver for giver, _ in self.givers)]
        if any(layer.watching for layer in layers):
            return False
        ways = tuple(layer.way for layer in layers)
        if not self.compared or any(now is not then for now, then in zip(ways, self.compared, strict=True)):
            self.compared, self.equal = ways, self._equal()
        return self.equal

    def _equal(self) -> bool:
        taken = self.reader.way.takes if self.reader.way is not None else None
        wanted = self._units_of(taken, 1)
        for giver, parts in self.givers:
            given = self._units_of(giver.way.gives if giver.way is not None else None, parts)
            if wanted is None or given is None or not torch.equal(wanted, given):
                return False
        return True

    def _units_of(self, there: Tensor | None, parts: int) -> Tensor | None:
        """Return which units are there, bool [units], from bool [length]; None where one is there in part."""
        if there is None:
            return None
        runs = there.view(parts, self.units, -1)
        some = runs.any(2).any(0)
        return some if torch.equal(some, runs.all(2).all(0)) else None

    def places(self, units: Tensor, parts: int, length: int) -> Tensor:
        """Return the places of some units, int64, along an axis of `length`."""
        return torch.arange(length, device=units.device).view(parts, self.units, -1)[:, units].flatten()


def pair(
    model: Any, layers: Mapping[str, Layer], couplings: Sequence[Coupling], example: tuple[Tensor, ...]
) -> list[Pair]:
    """Return the pairs between which nothing looks at the units' number or at several of them, as activations,
    attention and dropout do not and norms do; their givers leave out what no weight computes from now on. Tried out
    with half of the units, in the model's present mode. Weights must be whole; `example` is a batch."""
    found = _candidates(layers, couplings)
    good = found if not found or _goes(model, found, example) else [e for e in found if _goes(model, [e], example)]
    for each in good:
        for giver, _ in each.givers:
            giver.narrow = each.narrow
    return good


def _candidates(layers: Mapping[str, Layer], couplings: Sequence[Coupling]) -> list[Pair]:
    pairs: list[Pair] = []
    for each in couplings:
        made = [part for part in each.makes if part.parameter in layers]
        others = {part.parameter for part in each.makes} - {part.parameter for part in made}
        biases = {part.parameter.removesuffix("weight") + "bias" for part in made}
        if not made or not others <= biases or len(each.reads) != 1 or each.reads[0].parameter not in layers:
            continue
        (read,) = each.reads
        reader = layers[read.parameter]
        fit = [
            part.axis == 0 and layers[part.parameter].geometry.outputs % (part.parts * each.units) == 0 for part in made
        ]
        if all(fit) and (read.axis, read.parts) == (1, 1) and reader.geometry.shape[1] % each.units == 0:
            pairs.append(Pair(each.units, [(layers[part.parameter], part.parts) for part in made], reader))
    return pairs


@torch.no_grad()
def _goes(model: Any, pairs: Sequence[Pair], example: tuple[Tensor, ...]) -> bool:
    """Return whether readers compute the same from half of their units as from all with the other half's weights 0."""
    try:
        wanted, found = [_run(model, pairs, example, narrow) for narrow in (False, True)]
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(wanted, found, strict=True))
    except Exception:  # whatever a model does where a tensor has another shape than it thinks
        return False


def _run(model: Any, pairs: Sequence[Pair], example: tuple[Tensor, ...], narrow: bool) -> list[Tensor]:
    given: list[Tensor] = []
    with contextlib.ExitStack() as changed:
        for each in pairs:
            half = torch.arange(0, each.units, 2, device=each.reader.mask.device)
            weight = each.reader.module.weight
            read = each.places(half, 1, weight.shape[1])
            if narrow:
                weight = weight.index_select(1, read)
                for giver, parts in each.givers:
                    kept = each.places(half, parts, giver.geometry.outputs)
                    changed.enter_context(_forward(giver, _selecting(giver, kept)))
            else:
                weight = torch.zeros_like(weight).index_copy_(1, read, weight.index_select(1, read))
            changed.enter_context(_forward(each.reader, _noting(each.reader, weight, given)))
        model.loss(example)
    return given


def _selecting(giver: Layer, kept: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: giver.plain(x).index_select(giver.geometry.axis, kept)


def _noting(reader: Layer, weight: Tensor, given: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        given.append(reader.geometry.forward(x, weight, reader.module.bias))
        return given[-1]

    return forward


@contextlib.contextmanager
def _forward(layer: Layer, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
    before, layer.module.forward = layer.module.forward, forward
    try:
        yield
    finally:
        layer.module.forward = before
