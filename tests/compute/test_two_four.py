"""What two_four is for, and its passes where there are such units."""

import pytest
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import _sparse_semi_structured_tile

from sparsetrain.compute.geometry import geometry_of
from sparsetrain.compute.layer import put
from sparsetrain.compute.layers import layers_of
from sparsetrain.compute.ways.two_four import LEAST, TwoFour, serves_both
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.masks.tiles import regular

CUDA = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= LEAST


def mask_of(rows: int, width: int) -> torch.Tensor:
    """Return a transposable mask as mask updates choose it, for random weights."""
    scores = torch.rand(rows * width // 16, 4, 4, generator=torch.Generator().manual_seed(2))
    tiles = regular(scores, 2, torch.zeros_like(scores, dtype=torch.bool))
    return tiles.view(rows // 4, width // 4, 4, 4).transpose(1, 2).reshape(rows, width)


def test_what_packs_the_weights_keeps_all_that_a_transposable_mask_has():
    mask = mask_of(64, 128)
    assert serves_both(mask)
    weights = torch.randn(mask.shape, dtype=torch.bfloat16) * mask
    weights[torch.rand(mask.shape) < 0.1] = 0.0  # as weights that were just grown are
    assert torch.equal(_sparse_semi_structured_tile(weights), weights)


def test_a_mask_of_one_axis_serves_one_product():
    row = torch.tensor([True, True, False, False]).repeat(64, 16)
    assert not serves_both(row) and not serves_both(row.t())
    assert not serves_both(torch.ones(6, 8, dtype=torch.bool)) and not serves_both(torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("module", "mask", "why"),
    [
        (nn.Conv2d(64, 64, 1), mask_of(64, 64).view(64, 64, 1, 1), "it is no linear layer"),
        (nn.Linear(32, 64), mask_of(64, 32), "its sides are not multiples of 64"),
        (nn.Linear(64, 64), torch.ones(64, 64, dtype=torch.bool), "its mask is not 2:4 along both axes"),
        (nn.Linear(64, 64), mask_of(64, 64), "there are no sparse matrix units here"),
    ],
)
def test_it_says_what_it_is_not_for(module, mask, why):
    geometry = geometry_of(module)
    assert geometry is not None
    assert TwoFour.refuses(geometry, mask, Pattern.of(mask), torch.bfloat16).startswith(why)


@pytest.mark.skipif(not CUDA, reason="no GPU with sparse matrix units")
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_masked_dense_layer(bias):
    module = nn.Linear(128, 192, bias=bias).cuda()
    mask = mask_of(192, 128).cuda()
    with torch.no_grad():
        module.weight.mul_(mask)
    x = torch.randn(40, 128, device="cuda", requires_grad=True)
    dy = torch.randn(40, 192, device="cuda")
    found = []
    for way in ("masked", "two_four"):
        (layer,) = layers_of(module, ["weight"])[0].values()
        module.zero_grad()
        x.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            module(x)
            layer.adopt(mask)
            layer.choose(way)
            assert layer.chosen == way
            if way == "two_four":
                put(module.weight, layer.values(module.weight.data))
            y = module(x)
        y.float().backward(dy)
        gradient = module.weight.grad[mask] if way == "masked" else module.weight.grad
        found.append((y.float(), x.grad, gradient))
        layer.leave()
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=3e-2, atol=3e-1), (one - two).abs().max()
