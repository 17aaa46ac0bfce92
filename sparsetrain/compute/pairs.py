"""Which layers hand their outputs to one other alone, unit by unit: units that are out need not be there at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.compute.layer import Layer
from sparsetrain.config.coupling import Coupling

Pair = tuple[Layer, Layer]


def pair(model: Any, layers: Mapping[str, Layer], couplings: Sequence[Coupling], example: tuple[Tensor, ...]) -> None:
    """Set `reader` of each layer whose units another one reads and nothing between them looks at their number or at
    each other, as activations and dropout do not and norms do. Tried out with half of the units, in the model's
    present mode. Weights must be whole; `example` is a batch."""
    found = _candidates(layers, couplings)
    if not found or _goes(model, found, example):
        good = found
    else:
        good = [each for each in found if _goes(model, [each], example)]
    for giver, reader in good:
        giver.reader = reader


def _candidates(layers: Mapping[str, Layer], couplings: Sequence[Coupling]) -> list[Pair]:
    pairs: list[Pair] = []
    for each in couplings:
        made = [part for part in each.makes if part.parameter in layers]
        others = {part.parameter for part in each.makes} - {part.parameter for part in made}
        if len(made) != 1 or len(each.reads) != 1 or each.reads[0].parameter not in layers:
            continue
        (made_by,), (read_by,) = made, each.reads
        giver, reader = layers[made_by.parameter], layers[read_by.parameter]
        plain = (made_by.axis, made_by.parts, read_by.axis, read_by.parts) == (0, 1, 1, 1)
        own = others <= {made_by.parameter.removesuffix("weight") + "bias"}
        if plain and own and giver.geometry.outputs == each.units == reader.geometry.shape[1]:
            pairs.append((giver, reader))
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
        for giver, reader in pairs:
            half = torch.arange(0, giver.geometry.outputs, 2, device=reader.mask.device)
            weight = reader.module.weight
            if narrow:
                weight = weight.index_select(1, half)
                changed.enter_context(_forward(giver, _selecting(giver, half)))
            else:
                weight = torch.zeros_like(weight).index_copy_(1, half, weight.index_select(1, half))
            changed.enter_context(_forward(reader, _noting(reader, weight, given)))
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
