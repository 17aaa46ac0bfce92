"""Exactly k of the highest scores; ties go to the lower flat index, on every rank alike."""

from __future__ import annotations

import torch
from torch import Tensor

LONG = 1 << 14  # columns of a row that is not sorted
LOWEST = torch.finfo(torch.float64).min


def best(scores: Tensor, quota: int | Tensor, among: Tensor | None = None) -> Tensor:
    """Return bool [G, U] with exactly `quota` places true in each row (a number, or one per row): the highest scores
    among `among`, the lower index first where scores are equal.

    Raises ValueError when a candidate's score is NaN or a row has too few candidates.
    """
    rows, columns = scores.shape
    if rows == 1 and columns >= LONG:
        return _longest(scores[0].double(), int(quota), None if among is None else among[0]).unsqueeze(0)
    values = scores.double()
    quotas = torch.full((rows,), quota) if isinstance(quota, int) else quota
    available = torch.full((rows,), columns) if among is None else among.sum(1)
    if among is not None:
        values = values.clamp(min=LOWEST).masked_fill(~among, -torch.inf)
    if torch.isnan(values).any():
        raise ValueError("a score is not a number")
    if bool(((quotas < 0) | (quotas > available)).any()):
        row = int(((quotas < 0) | (quotas > available)).nonzero()[0])
        raise ValueError(f"cannot choose {int(quotas[row])} of {int(available[row])} weights")
    # Stable: equal scores stay in index order. Ties are common, since every grown weight begins at exactly zero.
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    chosen = torch.zeros(rows, columns, dtype=torch.bool)
    return chosen.scatter_(1, order, torch.arange(columns) < quotas.unsqueeze(1))


def _longest(scores: Tensor, quota: int, among: Tensor | None) -> Tensor:
    """Return what `best` does of a single long row, without sorting it."""
    candidates = scores if among is None else scores[among]
    if torch.isnan(candidates).any():
        raise ValueError("a score is not a number")
    if not 0 <= quota <= candidates.numel():
        raise ValueError(f"cannot choose {quota} of {candidates.numel()} weights")
    if quota == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = torch.topk(candidates, quota, sorted=False).values.min()
    chosen = scores > least
    equal = scores == least
    if among is not None:
        chosen &= among
        equal &= among
    chosen[torch.nonzero(equal).flatten()[: quota - int(chosen.sum())]] = True
    return chosen


def top(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Return a bool mask, shaped as `scores`, with exactly k places true: the highest scores among `among`.

    Raises ValueError when a candidate's score is NaN or there are fewer than k candidates.
    """
    candidates = None if among is None else among.reshape(1, -1).cpu()
    return best(scores.detach().reshape(1, -1).cpu(), k, candidates).view(scores.shape).to(scores.device)
