"""The mean over ranks at the places that promise most, in two rounds to the places' owners and back.

The three phases of a distributed top-k query (Cao and Wang, Efficient top-k query calculation in distributed networks,
PODC 2004) with a fixed number of places in the second phase, so that the bytes are known beforehand and do not grow
with the number of ranks. All values travel as 8 bits with a scale.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.collective.index_codes import Auto, EliasFano
from sparsetrain.collective.meter import Kind
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.transport import Transport
from sparsetrain.collective.value_codes import Int8
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.select import best


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one rank owns of a tensor: flat places, int64 [groups, units, size], and the units a group to choose."""

    places: Tensor
    quota: int


def sparse_mean(
    values: Tensor, places: Tensor, wanted: Sequence[tuple[Layout, int]], transport: Transport, kind: Kind
) -> tuple[Tensor, Tensor]:
    """Return (places, the mean values there, fp32); the same bits on all ranks.

    `values` are this rank's, fp32 [n]: the weights of all tensors one after the other, each in the order of its layout.
    `places` are those that this rank proposes, ascending. `wanted` names for each tensor how many units of each group
    are asked for: first every owner adds up what has been proposed of its places, then the units with the largest
    such sums get whole means. An owner asks for one unit more than its share, since shares are uneven. Means are
    not-a-number where some rank's values are not finite. Collective: all ranks must give equal `wanted`. Raises
    CorruptPayload or ValueError where a message is none.
    """
    if transport.size == 1:
        return places, values[places]
    owned = [_pieces(wanted, rank, transport.size) for rank in range(transport.size)]
    flat = [torch.cat([piece.places.flatten() for piece in pieces]) for pieces in owned]
    total, finite = _proposed(values, places, flat, transport, kind)
    if not finite:
        return torch.arange(values.numel()), torch.full(values.shape, math.nan)
    counts = [sum(p.places[:, : p.quota].numel() for p in pieces) for pieces in owned]
    chosen = _exchanged_places(_best(total, owned[transport.rank]), counts, flat, transport, kind)
    code = Int8(Int8.Config())
    parts = [code.encode(values[at]).to(transport.device) for at in chosen]
    own = counts[transport.rank]
    whole = torch.zeros(own)
    for part in transport.all_to_all_v(parts, kind, [code.bytes(own)] * transport.size):
        whole += code.decode(part.cpu(), own)
    mean = code.encode(whole / transport.size).to(transport.device)
    means = transport.all_gather_v(mean, kind, [code.bytes(count) for count in counts])
    return torch.cat(chosen), torch.cat([code.decode(m.cpu(), n) for m, n in zip(means, counts, strict=True)])


def _pieces(wanted: Sequence[tuple[Layout, int]], rank: int, ranks: int) -> list[Piece]:
    """Return what a rank owns: every `ranks`-th group, or every `ranks`-th unit where there is a single group."""
    start, pieces = 0, []
    for layout, quota in wanted:
        whole = torch.arange(start, start + math.prod(layout.shape)).view(layout.groups, layout.units, layout.size)
        start += whole.numel()
        if layout.groups > 1:
            pieces.append(Piece(whole[rank::ranks], min(quota, layout.units)))
        else:
            mine = whole[:, rank::ranks]
            pieces.append(Piece(mine, min(-(-quota // ranks) + 1, mine.shape[1]) if quota else 0))
    return pieces


def _proposed(
    values: Tensor, places: Tensor, flat: Sequence[Tensor], transport: Transport, kind: Kind
) -> tuple[Tensor, bool]:
    """Return the sum of what all ranks propose of the own places, and whether all ranks' values are finite."""
    codec = Codec(Auto(Auto.Config()), Int8(Int8.Config()))
    named = torch.zeros(values.numel(), dtype=torch.bool)
    named[places] = True
    finite = bool(torch.isfinite(values).all())
    messages = []
    for rank, at in enumerate(flat):
        mine = torch.nonzero(named[at]).flatten()
        entries = Entries(mine.int(), values[at[mine]] if finite else torch.zeros(mine.numel()), finite=finite)
        messages.append(codec.encode(entries, Frame(at.numel(), 0, 0, rank)).to(transport.device))
    own = Frame(flat[transport.rank].numel(), 0, 0, transport.rank)
    total = torch.zeros(own.size)
    for source, message in enumerate(transport.all_to_all_v(messages, kind)):
        entries = codec.decode(message, own, source)
        assert entries.indices is not None
        total[entries.indices.long()] += entries.values
        finite = finite and entries.finite
    return total, finite


def _best(total: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Return the own places, ascending, of the units with the largest sums: exactly each piece's quota."""
    chosen = []
    for piece, sums in zip(pieces, total.split([piece.places.numel() for piece in pieces]), strict=True):
        units = best(sums.view(piece.places.shape).abs().double().mean(2), piece.quota)
        chosen.append(units.unsqueeze(2).expand(piece.places.shape).flatten())
    return torch.nonzero(torch.cat(chosen)).flatten()


def _exchanged_places(
    own: Tensor, counts: Sequence[int], flat: Sequence[Tensor], transport: Transport, kind: Kind
) -> list[Tensor]:
    """Return the places that each owner has chosen, in rank order."""
    code = EliasFano(EliasFano.Config())
    sizes = [at.numel() for at in flat]
    lengths = list(itertools.starmap(code.bytes, zip(counts, sizes, strict=True)))
    message = code.encode(own.int(), sizes[transport.rank]).to(transport.device)
    answers = transport.all_gather_v(message, kind, lengths)
    return [
        at[code.decode(each.cpu(), count, at.numel()).long()]
        for each, count, at in zip(answers, counts, flat, strict=True)
    ]
