"""What sparsity is worth: weights that count, floating-point operations, and accuracy beside them.

The names and formulas are ours where no source is given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsetrain.masks.maskset import MaskSet


def train_flops_ratio(sparse: float, source: str, every: int = 100, dense: float = 1.0) -> float:
    """Return a training step's operations as a share of dense training's, 3 f_D a step.

    `sparse` and `dense` are the operations of one forward pass, f_S and f_D. `source` `replicated`: 3 f_S a step, as
    SET. `mean_gradient`: (2 f_S + f_D + 3 f_S every) / (every + 1), for a dense backward pass each `every` steps (Evci
    et al. 2020, appendix H). `straight_through`: f_S forward and 2 f_D backward. Raises ValueError for another source.
    """
    if source == "replicated":
        return sparse / dense
    if source == "mean_gradient":
        return (2 * sparse + dense + 3 * sparse * every) / (every + 1) / (3 * dense)
    if source == "straight_through":
        return (sparse + 2 * dense) / (3 * dense)
    raise ValueError(f"source {source!r}; allowed: replicated, mean_gradient, straight_through")


def forward_flops(masks: MaskSet, places: Mapping[str, int]) -> tuple[float, float]:
    """Return the operations of the masked tensors' forward pass for one sample, (sparse, dense): 2 a weight and place.

    `places` says how often each tensor's weights are used: output pixels of a convolution, tokens of a linear layer.
    """
    dense = sum(2.0 * mask.numel() * places.get(name, 1) for name, mask in masks.masks.items())
    sparse = sum(2.0 * count * places.get(name, 1) for name, count in masks.counts().items())
    return sparse, dense


def effective(chain: Sequence[Tensor]) -> list[Tensor]:
    """Return the masks of consecutive layers without the weights that lie on no path from input to output.

    `chain` holds bool [outputs, inputs] masks, the outputs of one being the inputs of the next (Vysogorets and Kempe
    2021 call the sparsity of the result effective). Raises ValueError when the layers do not fit.
    """
    for before, after in itertools.pairwise(chain):
        if before.shape[0] != after.shape[1]:
            raise ValueError(f"{before.shape[0]} outputs meet {after.shape[1]} inputs")
    reached = [torch.ones(chain[0].shape[1], dtype=torch.bool)]
    for mask in chain:
        reached.append((mask & reached[-1]).any(1))
    wanted = [torch.ones(chain[-1].shape[0], dtype=torch.bool)]
    for mask in reversed(chain):
        wanted.insert(0, (mask & wanted[0].unsqueeze(1)).any(0))
    return [mask & reached[n] & wanted[n + 1].unsqueeze(1) for n, mask in enumerate(chain)]


def model_bytes(masks: MaskSet, others: int) -> float:
    """Return a sparse model's size: 4 bytes an active weight and unmasked parameter, 1 bit a masked weight (RigL)."""
    bitmap = sum(mask.numel() for name, mask in masks.masks.items() if masks.counts()[name] < mask.numel())
    return 4.0 * (sum(masks.counts().values()) + others) + bitmap / 8


def lottery_density(rounds: int, share: float = 0.2) -> float:
    """Return the density after pruning `share` of the survivors `rounds` times (Frankle and Carbin 2019)."""
    return math.pow(1.0 - share, rounds)
