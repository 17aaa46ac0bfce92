"""Every registered way is the dense layer with zeros, to rounding: what it gives out and all of its gradients."""

import pytest
import torch
from torch import nn

from sparsetrain import registry
from sparsetrain.compute.layer import Layer, put
from sparsetrain.compute.layers import layers_of

MODULES = {
    "linear": (lambda: nn.Linear(24, 40), (7, 24)),
    "no bias": (lambda: nn.Linear(24, 40, bias=False), (7, 24)),
    "more axes": (lambda: nn.Linear(24, 40), (2, 5, 24)),
    "3x3": (lambda: nn.Conv2d(6, 10, 3, padding=1), (3, 6, 9, 8)),
    "strided": (lambda: nn.Conv2d(6, 10, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2)), (3, 6, 9, 8)),
    "1x1": (lambda: nn.Conv2d(6, 10, 1, bias=False), (3, 6, 9, 8)),
}


def masks(shape: torch.Size) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    rectangle = torch.zeros(shape, dtype=torch.bool)
    rectangle[torch.arange(0, shape[0], 3)[:, None], torch.arange(0, shape[1], 2)] = True
    rows = torch.zeros(shape, dtype=torch.bool)
    rows[::2] = True
    blocks = torch.rand(-(-shape[0] // 4), -(-shape[1] // 4), generator=draw) < 0.4
    blocks = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)[: shape[0], : shape[1]]
    return {
        "blocks": blocks.view(*blocks.shape, *[1] * (len(shape) - 2)).expand(shape).clone(),
        "single weights": torch.rand(shape, generator=draw) < 0.2,
        "everything": torch.ones(shape, dtype=torch.bool),
        "nothing": torch.zeros(shape, dtype=torch.bool),
        "outputs and inputs": rectangle,
        "outputs": rows,
    }


def passes(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the output and the gradients of input, weight and bias."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(dy)
    bias = module.bias.grad if module.bias is not None else torch.zeros(0)
    return y.detach(), x.grad, module.weight.grad, bias


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", registry.names("way"))
def test_a_way_is_the_masked_dense_layer(name, kind):
    make, size = MODULES[kind]
    torch.manual_seed(1)
    fitted = 0
    for what, mask in masks(make().weight.shape).items():
        module = make()
        with torch.no_grad():
            module.weight.mul_(mask)
        x = torch.randn(size)
        dy = torch.randn_like(module(x))
        wanted = passes(module, x, dy)
        (layer,) = layers_of(module, ["weight"])[0].values()
        layer.adopt(mask)
        put(module.weight, module.weight.data[mask])
        layer.choose(name)
        if registry.load("way", name).refuses(layer.geometry, mask, layer.pattern, layer.dtype):
            assert layer.way is None and layer.chosen == "masked"
            continue
        fitted += 1
        assert layer.way is not None and layer.chosen == name
        layer.watching = True
        y, dx, gradient, bias = passes(module, x, dy)
        for found, right in ((y, wanted[0]), (dx, wanted[1]), (gradient, wanted[2][mask]), (bias, wanted[3])):
            assert torch.allclose(found, right, rtol=1e-4, atol=1e-5), (what, (found - right).abs().max())
        assert layer.dense_gradient() is not None
        assert torch.allclose(layer.dense_gradient(), wanted[2], rtol=1e-4, atol=1e-5), what
    assert fitted >= {"smaller": 2, "block": 2 if len(size) < 4 else 0, "two_four": 0}.get(name, 6)


@pytest.mark.parametrize("name", ["sparse", "block", "smaller"])
def test_a_way_computes_in_the_type_of_the_surroundings_or_in_its_own(name):
    module = nn.Linear(16, 16)
    (layer,) = layers_of(module, ["weight"])[0].values()
    layer.choose(name)
    x = torch.randn(4, 16)
    wanted = module(x)
    put(module.weight, module.weight.data.flatten())
    with torch.autocast("cpu", torch.bfloat16):
        narrow = x.bfloat16().requires_grad_()
        y = module(narrow)
    own = layer.way.only if layer.way is not None else None
    assert y.dtype == (own or torch.bfloat16) and layer.dtype == torch.bfloat16
    assert torch.allclose(y.float(), wanted, atol=3e-2)
    y.sum().backward()
    assert narrow.grad is not None and narrow.grad.dtype == torch.bfloat16
    assert module.weight.grad is not None and module.weight.grad.dtype == torch.float32


def test_a_module_with_a_whole_weight_does_what_it_did():
    module = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    wanted = module(x)
    (layer,) = layers_of(module, ["weight"])[0].values()
    assert torch.equal(module(x), wanted) and layer.seen == (3, 8)
    layer.leave()
    assert "forward" not in vars(module)


def test_dense_gradients_of_several_passes_add_up():
    module = nn.Linear(8, 8)
    (layer,) = layers_of(module, ["weight"])[0].values()
    assert isinstance(layer, Layer)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    layer.adopt(mask)
    put(module.weight, module.weight.data[mask])
    layer.choose("smaller")
    layer.watching = True
    x = torch.randn(3, 8)
    for _ in range(2):
        module(x).sum().backward()
    assert torch.allclose(layer.dense_gradient(), 2 * x.sum(0).expand(8, 8))


def test_a_layer_stays_with_its_way_where_that_fits_the_next_mask():
    module = nn.Linear(8, 8)
    (layer,) = layers_of(module, ["weight"])[0].values()
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:4] = True
    layer.adopt(half)
    layer.choose("smaller")
    layer.adopt(half.roll(2, 0))
    assert layer.chosen == "smaller" and layer.stale
    layer.adopt(torch.eye(8, dtype=torch.bool))
    assert layer.chosen == "masked" and layer.way is None


@pytest.mark.parametrize("name", ["nothing", "os:system", "sparsetrain.compute.ways.sparse:Sparse"])
def test_only_registered_ways_can_be_named(name):
    module = nn.Linear(8, 8)
    (layer,) = layers_of(module, ["weight"])[0].values()
    with pytest.raises(ValueError, match="there is no way"):
        layer.choose(name)
