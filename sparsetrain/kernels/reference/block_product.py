"""Products with kept blocks in plain torch: what every other version has to agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels.blocks import Blocks


def product(blocks: Blocks, values: Tensor, x: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    """See kernels.block_product.product."""
    tiles = x.view(len(x), x.shape[1] // blocks.size, blocks.size)
    matrices = blocks.gathered(values)
    groups = (blocks.width if turned else blocks.rows) // blocks.size
    taken, given = (blocks.row, blocks.column) if turned else (blocks.column, blocks.row)
    parts = torch.einsum("nbi,bio->nbo" if turned else "nbi,boi->nbo", tiles[:, taken.long()], matrices)
    y = x.new_zeros(len(x), groups, blocks.size).index_add_(1, given.long(), parts).flatten(1)
    return y if bias is None else y + bias


def gradient(blocks: Blocks, x: Tensor, dy: Tensor) -> Tensor:
    """See kernels.block_product.gradient."""
    takes, gives = (each.view(len(each), each.shape[1] // blocks.size, blocks.size) for each in (x, dy))
    return blocks.spread(
        torch.einsum("nbo,nbi->boi", gives[:, blocks.row.long()], takes[:, blocks.column.long()]).contiguous()
    )
