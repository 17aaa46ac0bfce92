"""Data that selections find hard, and what must hold of every selection."""

from __future__ import annotations

import numpy as np
import torch

from sparsetrain.kernels.select import Selection

KINDS = ("normal", "layers", "rounded", "zeros", "constant", "rare", "one run", "denormal", "periodic", "half zero")


def make(kind: str, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(size, generator=generator)
    at = torch.arange(size)
    if kind == "layers":
        data *= torch.exp(0.7 * torch.randn(64, generator=generator)).repeat_interleave(size // 64 + 1)[:size]
    elif kind == "rounded":
        data = (2 * data).round()
    elif kind == "zeros":
        data = torch.where(data > 0, 0.0, -0.0)
    elif kind == "constant":
        data = torch.where(data > 0, 2.5, -2.5)
    elif kind == "rare":
        data = torch.where(data > 3, data, 0.0)
    elif kind == "one run":
        data = torch.where((at >= size // 3) & (at < size // 3 + size // 10 + 1), data, 1e-6 * data)
    elif kind == "denormal":
        data *= 1e-40
    elif kind == "periodic":
        data = torch.where(at % max(1, size // 4096) == 0, 3.0, 0.1) * data.sign()
    elif kind == "half zero":
        data = torch.where(at % 2 == 0, data, 0.0)
    return data


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def same(one: Selection, other: Selection) -> bool:
    pairs = ((one.indices, other.indices), (one.values, other.values))
    return one.finite == other.finite and all(torch.equal(bits(a), bits(b)) for a, b in pairs)


def ranked(acc: torch.Tensor, k: int) -> torch.Tensor:
    """The definition: by (|value| descending, index ascending)."""
    return torch.sort(torch.sort(acc.abs(), descending=True, stable=True).indices[:k]).values


def holds(
    old: torch.Tensor | None, gradient: torch.Tensor, scale: float, chosen: Selection, residual: torch.Tensor
) -> torch.Tensor:
    """Check all that does not depend on which are chosen; return the sum."""
    acc = gradient.clone() if old is None else gradient + (old if scale == 1.0 else old * np.float32(scale).item())
    places = chosen.indices.long()
    assert chosen.indices.dtype == torch.int32 and chosen.values.dtype == torch.float32
    assert chosen.finite and bool((places[1:] > places[:-1]).all())
    assert torch.equal(bits(chosen.values), bits(acc[places]))
    assert not bits(residual)[places].any()
    rebuilt = residual.clone()
    rebuilt[places] = chosen.values
    assert torch.equal(bits(rebuilt), bits(acc))
    return acc
