"""Products with two of every four weights, on the sparse matrix units of a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsetrain.compute.geometry import Geometry, LinearGeometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels.expand import collect, expand
from sparsetrain.kernels.pattern import Pattern

TYPES = (torch.bfloat16, torch.float16)
SIDES = (32, 64)  # what CUTLASS's kernels want both sides of a matrix to be multiples of, rows and what is summed
LEAST = (8, 0)  # compute capability: Ampere


class TwoFour(Way):
    """Torch's semi-structured products (torch.sparse, CUTLASS), for linear layers under transposable 2:4 masks: they
    serve the forward pass and the input's gradient; the weights' gradient is a dense product.

    Each step packs the weights both ways, in one pass over them.
    """

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """See Way."""
        if not isinstance(geometry, LinearGeometry):
            return "it is no linear layer"
        if any(side % max(SIDES) for side in mask.shape):
            return f"its sides are not multiples of {max(SIDES)}"
        if not serves_both(mask):
            return "its mask is not 2:4 along both axes (n:m with transposable: true)"
        if not mask.is_cuda or torch.version.hip or torch.cuda.get_device_capability(mask.device) < LEAST:
            return "there are no sparse matrix units here (NVIDIA's, from Ampere on)"
        return "" if dtype in TYPES else "it computes in fp32; allowed: train.precision bf16"

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        return F.linear(x, self._packed(values), bias)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        dx = gradient = None
        rows = self.geometry.output_rows(dy)
        if wanted[0]:
            dx = self.geometry.input_gradient(F.linear(rows, self._packed(values).t()), x)
        if wanted[1]:
            gradient = collect(self.pattern, self.geometry.weight_gradient(x, dy))
        return dx, gradient

    def _packed(self, values: Tensor) -> Tensor:
        whole = expand(self.pattern, values).view(self.geometry.shape)
        # Of each tile the largest are taken, two of a row and two of a column: here those that are there.
        return torch.sparse.SparseSemiStructuredTensorCUTLASS.prune_dense_static_sort(whole)


def serves_both(mask: Tensor) -> bool:
    """Return whether at most two of every four weights are kept along each of a matrix's axes."""
    if mask.ndim != 2 or any(side % 4 for side in mask.shape):
        return False
    return all(bool((each.reshape(-1, 4).sum(1) <= 2).all()) for each in (mask, mask.t()))
