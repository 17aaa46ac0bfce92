"""Sums of a few whole numbers over all ranks, in few latencies."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.collective.butterfly import swaps
from sparsetrain.collective.some import send
from sparsetrain.collective.transport import Transport


def whole_sum(numbers: Tensor, transport: Transport) -> Tensor:
    """Return the sum over ranks of 1-D integer tensors of one length, by pairs of ranks: log2 P latencies, where a ring
    takes 2 (P-1). A sum of whole numbers is the same in any order. Collective."""
    walk = swaps(transport.rank, transport.size)
    apart = len(walk) - 1 if transport.size & (transport.size - 1) else len(walk)
    for number, swap in enumerate(walk):
        own = {transport.rank if swap.partner is None or not swap.sends else swap.partner: numbers}
        sources = {swap.partner: numbers.numel()} if swap.receives and swap.partner is not None else {}
        for answer in send(own, sources, transport).values():
            numbers = answer if number == apart else numbers + answer
    return numbers
