"""The mean over ranks at the places that some rank asks for, in two rounds: places, then values over their union."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sparsetrain.collective.index_codes import EliasFano
from sparsetrain.collective.meter import Kind
from sparsetrain.collective.transport import Transport


def sparse_mean(values: Tensor, places: Tensor, transport: Transport, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return (the union of all ranks' places, ascending; the mean values there, fp32, equal bits on all ranks).

    `values` are this rank's, fp32 [n]; `places` ascend, and all ranks must give equally many. Places travel as
    Elias-Fano codes, values as bf16: an owner per range adds them up in fp32 in rank order and gives all the mean,
    rounded once more. Collective. Raises ValueError where a rank's places are none.
    """
    size = values.numel()
    union = _union(places, size, transport, kind)
    local = values[union].bfloat16()
    edges = [union.numel() * rank // transport.size for rank in range(transport.size + 1)]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    parts = [_bytes(part) for part in local.split(lengths)]
    own = 2 * lengths[transport.rank]
    total = torch.zeros(lengths[transport.rank])
    for part in transport.all_to_all_v([p.to(transport.device) for p in parts], kind, [own] * transport.size):
        total += _floats(part)
    mean = _bytes((total / transport.size).bfloat16()).to(transport.device)
    means = transport.all_gather_v(mean, kind, [2 * length for length in lengths])
    return union, torch.cat([_floats(part) for part in means])


def _union(places: Tensor, size: int, transport: Transport, kind: Kind) -> Tensor:
    code = EliasFano(EliasFano.Config())
    message = code.encode(places.int(), size).to(transport.device)
    everyone = transport.all_gather(message, kind)
    named = torch.zeros(size, dtype=torch.bool)
    for each in everyone:
        named[code.decode(each.cpu(), places.numel(), size).long()] = True
    return torch.nonzero(named).flatten()


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _floats(data: Tensor) -> Tensor:
    return data.cpu().contiguous().view(torch.bfloat16).float()
