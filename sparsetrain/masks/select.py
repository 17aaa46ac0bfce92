"""Exactly k of the highest scores; ties go to the lower flat index, on every rank alike."""

from __future__ import annotations

import torch
from torch import Tensor


def top(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Return a bool mask, shaped as `scores`, with exactly k places true: the highest scores among `among`.

    Raises ValueError when a candidate's score is NaN or there are fewer than k candidates.
    """
    flat = scores.detach().flatten().cpu().double()
    candidates = torch.arange(flat.numel()) if among is None else torch.nonzero(among.flatten().cpu()).flatten()
    values = flat[candidates]
    if torch.isnan(values).any():
        raise ValueError("a score is not a number")
    if not 0 <= k <= values.numel():
        raise ValueError(f"cannot choose {k} of {values.numel()} weights")
    # Stable: equal scores stay in index order. Ties are common, since every grown weight begins at exactly zero.
    order = torch.sort(values, descending=True, stable=True).indices[:k]
    chosen = torch.zeros(flat.numel(), dtype=torch.bool)
    chosen[candidates[order]] = True
    return chosen.view(scores.shape).to(scores.device)


def random(shape: torch.Size, k: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """Return a bool mask with exactly k places true, drawn uniformly without replacement."""
    count = shape.numel() if among is None else int(among.sum())
    places = torch.arange(shape.numel()) if among is None else torch.nonzero(among.flatten().cpu()).flatten()
    if not 0 <= k <= count:
        raise ValueError(f"cannot choose {k} of {count} weights")
    chosen = torch.zeros(shape.numel(), dtype=torch.bool)
    chosen[places[torch.randperm(count, generator=generator)[:k]]] = True
    return chosen.view(shape)
