"""Products with kept blocks are those of the dense matrix that they stand for; Triton's version is in test_triton."""

import pytest
import torch

from sparsetrain.kernels.block_product import gradient, product
from sparsetrain.kernels.blocks import SIZES, Blocks


def mask_of(size: int, density: float, rows: int = 4, columns: int = 3) -> torch.Tensor:
    kept = torch.rand(rows, columns, generator=torch.Generator().manual_seed(3)) < density
    return kept.repeat_interleave(size, 0).repeat_interleave(size, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_products_are_those_of_the_dense_matrix(size, density):
    mask = mask_of(size, density)
    blocks = Blocks.of(mask)
    assert blocks is not None and blocks.size >= size and blocks.count * blocks.size**2 == int(mask.sum())
    weight = torch.randn(mask.shape, dtype=torch.float64) * mask
    x, dy = (torch.randn(6, n, dtype=torch.float64) for n in (mask.shape[1], mask.shape[0]))
    bias = torch.randn(mask.shape[0], dtype=torch.float64)
    assert torch.allclose(product(blocks, weight[mask], x, bias), x @ weight.t() + bias)
    assert torch.allclose(product(blocks, weight[mask], dy, turned=True), dy @ weight)
    assert torch.allclose(gradient(blocks, x, dy), (dy.t() @ x)[mask])


def test_the_largest_blocks_are_found_and_small_ones_refused():
    found = Blocks.of(mask_of(64, 0.5, 3, 3))
    assert found is not None and found.size == 64
    assert Blocks.of(mask_of(8, 0.5)) is None
    assert Blocks.of(torch.ones(24, 32, dtype=torch.bool)) is None
    whole = Blocks.of(torch.ones(32, 64, dtype=torch.bool))
    assert whole is not None and (whole.size, whole.count) == (32, 2)


def test_wrong_shapes_are_refused():
    blocks = Blocks.of(mask_of(16, 1.0))
    assert blocks is not None
    x, dy, values = torch.zeros(2, 48), torch.zeros(2, 64), torch.zeros(48 * 64)
    with pytest.raises(ValueError, match=r"x is \[batch, 48\]"):
        product(blocks, values, dy)
    with pytest.raises(ValueError, match=r"values are \[3072\]"):
        product(blocks, values[1:], x)
    with pytest.raises(ValueError, match="x has 2 samples, dy 1"):
        gradient(blocks, x, dy[:1])
