"""What the state of an exchange becomes when ranks come or go.

A residual is a promise: 1 / P of it will reach the mean. So what a rank keeps is scaled by P' / P when P ranks become
P', who leaves in order gives its residual to another, and who is new begins with none. The mean over ranks of what is
owed stays as it is. What died with a rank is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.collective.world import World
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.gradient.small import REST

Tensors = dict[str, Tensor]


def newcomer(exchange: GradientExchange, state: Mapping[str, Tensor]) -> Tensors:
    """Return the state of a rank that joins, from `exchange.state()` of one that was there."""
    joined = dict(state)
    for name in _names(exchange):
        fields = {field: state[f"{field}/{name}"] for field in exchange.feedback.fields}
        joined |= {f"{field}/{name}": part for field, part in exchange.feedback.newcomer(fields).items()}
    return {key: torch.zeros_like(t) if key.startswith(f"{REST}/") else t for key, t in joined.items()}


def owed(exchange: GradientExchange, state: Mapping[str, Tensor]) -> Tensors:
    """Return the part of `exchange.state()` that the mean will get 1 / P of."""
    names = set(_names(exchange))
    pending = exchange.feedback.pending

    def belongs(key: str) -> bool:
        field, _, name = key.partition("/")
        return field == REST or (field in pending and name in names)

    return {key: tensor for key, tensor in state.items() if belongs(key)}


def scaled(exchange: GradientExchange, state: Mapping[str, Tensor], ranks: int, former: int) -> Tensors:
    """Return a rank's state among `ranks`, where it was one of `former`: what is owed to the mean stays the same."""
    if ranks == former:
        return dict(state)
    return {**state, **{key: tensor * (ranks / former) for key, tensor in owed(exchange, state).items()}}


def hand_over(exchange: GradientExchange, world: World, leaving: list[int]) -> None:
    """Give what the `leaving` ranks owe to those that stay, in turn. Collective over all, also those that leave.

    What leaving ranks hold is of no use afterwards.
    """
    staying = [rank for rank in range(world.size) if rank not in leaving]
    own = owed(exchange, exchange.state())
    if not staying or not own:
        return
    taken = {key: tensor.clone() for key, tensor in own.items()}
    for number, source in enumerate(leaving):
        flat = torch.cat([tensor.reshape(-1) for tensor in own.values()])
        world.transport.broadcast(flat, "control", source)
        if staying[number % len(staying)] == world.rank:
            parts = flat.split([tensor.numel() for tensor in own.values()])
            for (key, tensor), part in zip(taken.items(), parts, strict=True):
                taken[key] = tensor + part.view_as(tensor)
    exchange.load_state({**exchange.state(), **taken})


def reconcile(exchange: GradientExchange, world: World) -> None:
    """Restore what the error feedback promises between ranks. Collective, after a change of them."""

    def mean(tensor: Tensor) -> Tensor:
        world.transport.all_reduce(tensor, "control")
        return tensor.div_(world.size)

    for channel in exchange.channels:
        exchange.feedback.reconcile(channel, mean)


def _names(exchange: GradientExchange) -> list[str]:
    return [name for channel in exchange.channels for name in channel.bucket.names]
