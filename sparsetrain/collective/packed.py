"""Values only, over places that all ranks share: no index travels, and nothing is lost but rounding."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.collective.collective import Collective, Load, Volume
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.value_codes import FP32
from sparsetrain.collective.world import World
from sparsetrain.config.component import NoOptions


class Packed(Collective):
    """Mean of the values at shared places (the active set, or randomk's draw): 2 n (P-1)/P values, 2 (P-1) latencies.

    fp32 values are all-reduced. Shorter ones are reduced by an owner per range, summed in fp32 in rank order and
    gathered again, because an all-reduce in short values would lose the rounding of its partial sums.
    """

    Config = NoOptions

    support = "shared"

    def exchange(self, entries: Entries, frame: Frame, codec: Codec, world: World, out: Tensor) -> Outcome:
        """See Collective."""
        if isinstance(codec.values, FP32) or world.size == 1:
            total, outcome = _all_reduce(entries, codec, frame, world)
        else:
            total, outcome = _by_owners(entries, frame, codec, world)
        if outcome.finite:
            total = total.mul_(1.0 / world.size).to(out.device)
            if entries.indices is None:
                out.copy_(total)
            else:
                out.zero_()
                out[entries.indices.long()] = total
        return outcome

    def volume(self, load: Load) -> Volume:
        """Return 2 n (P-1)/P values, n being the shared places, and 2 (P-1) latencies."""
        return Volume(2 * load.count * load.value_bytes * (load.ranks - 1) / load.ranks, 2 * (load.ranks - 1))


def _all_reduce(entries: Entries, codec: Codec, frame: Frame, world: World) -> tuple[Tensor, Outcome]:
    # One rank alone still rounds, so that runs of any size know the same values.
    sent = entries.values.clone()
    if not isinstance(codec.values, FP32):
        alone = dataclasses.replace(entries, shared=True)
        sent = codec.decode(codec.encode(alone, frame), frame, world.rank, alone).values.to(sent.device)
    leftover = () if isinstance(codec.values, FP32) else (Entries(entries.indices, entries.values - sent),)
    if not entries.finite:
        sent.fill_(float("nan"))
    world.transport.all_reduce(sent, "gradient")
    # A sum is not finite when an element is not; it can also overflow, hence the second look.
    finite = bool(torch.isfinite(sent.sum())) or bool(torch.isfinite(sent).all())
    return sent, Outcome(leftover, finite=finite, distinct=len(entries))


def _by_owners(entries: Entries, frame: Frame, codec: Codec, world: World) -> tuple[Tensor, Outcome]:
    transport, count = world.transport, len(entries)
    edges = [count * rank // world.size for rank in range(world.size + 1)]
    lengths = [edges[rank + 1] - edges[rank] for rank in range(world.size)]
    frames = [Frame(frame.size, frame.epoch, frame.bucket, rank) for rank in range(world.size)]
    parts = [
        Entries(None, part, shared=True, finite=entries.finite) for part in entries.values.split_with_sizes(lengths)
    ]
    messages = [codec.encode(part, to).to(transport.device) for part, to in zip(parts, frames, strict=True)]
    mine = parts[world.rank]
    own_length = [codec.bytes(len(mine), frame.size, shared=True)] * world.size
    arrived = transport.all_to_all_v(messages, "gradient", own_length)
    decoded = [codec.decode(each, frames[world.rank], source, mine) for source, each in enumerate(arrived)]
    if not all(each.finite for each in decoded):
        return entries.values, Outcome(finite=False)
    total = decoded[0].values.clone()
    for each in decoded[1:]:
        total.add_(each.values)
    answer = codec.encode(Entries(None, total, shared=True), frames[world.rank]).to(transport.device)
    answers = transport.all_gather_v(
        answer, "gradient", [codec.bytes(len(part), frame.size, shared=True) for part in parts]
    )
    result = torch.cat(
        [codec.decode(each, frames[rank], rank, parts[rank]).values for rank, each in enumerate(answers)]
    )
    sent = torch.cat([codec.values.decode(codec.values.encode(part.values.cpu()), len(part)) for part in parts])
    left = entries.values - sent.to(entries.values.device)
    # The owner's rounding of the sum is nobody else's to remember.
    left[edges[world.rank] : edges[world.rank + 1]] += (total - result[edges[world.rank] : edges[world.rank + 1]]).to(
        left.device
    )
    return result, Outcome((Entries(entries.indices, left),), distinct=count)
