"""Operations and paths, counted on real models, against what their shapes say."""

import pytest
import torch
from torch import nn

from sparsetrain.compute.layer import put
from sparsetrain.compute.layers import layers_of
from sparsetrain.engine.flow import effective_sparsity
from sparsetrain.engine.operations import Operations, count
from sparsetrain.masks.efficiency import effective, forward_flops, train_flops_ratio
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.models.cnn import CNN
from sparsetrain.models.gpt import GPT
from sparsetrain.models.mlp import MLP

IMAGES = (torch.rand(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64))
BYTES = (torch.zeros(1, 128, dtype=torch.int64),) * 2


def masked(model):
    return {name: parameter for name, parameter in model.named_parameters() if name in model.maskable()}


def masks_of(model, density, update=None):
    generator = torch.Generator().manual_seed(0)
    lots = {name: torch.rand(p.shape, generator=generator) for name, p in masked(model).items()}
    wider = {name: lot < update for name, lot in lots.items()} if update else {}
    return MaskSet({name: lot < density for name, lot in lots.items()}, updates=wider)


def test_a_convolution_counts_every_pixel_and_a_linear_layer_every_row():
    model = CNN(CNN.Config())
    found = count(model, IMAGES, masked(model))
    assert found.masked == {
        "second.weight": 3 * 2 * 32 * 16 * 9 * 14 * 14,
        "hidden.weight": 3 * 2 * 128 * 32 * 49,
        "output.weight": 3 * 2 * 10 * 128,
    }
    assert found.total - sum(found.masked.values()) == 3 * 2 * 16 * 9 * 28 * 28


def test_attention_and_the_tied_head_belong_to_the_rest():
    config = GPT.Config()
    model = GPT(config)
    found = count(model, BYTES, masked(model))
    assert sum(found.masked.values()) == 2 * 128 * sum(p.numel() for p in masked(model).values())
    attention = config.layers * 2 * (2 * 128 * 128 * config.width)
    assert found.total - sum(found.masked.values()) == attention + 2 * 128 * config.vocabulary * config.width


def test_a_weight_that_a_function_uses_is_counted_and_the_model_stays_as_it_was():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 6))
            self.drop = nn.Dropout(0.5)

        def loss(self, batch):
            return (self.drop(batch[0]) @ self.weight.T).sum()

    model, before = Own(), torch.get_rng_state()
    model.drop.eval()
    found = count(model, (torch.ones(5, 6),), {"weight": model.weight})
    assert found == Operations(2 * 5 * 4 * 6, {"weight": 2 * 5 * 4 * 6})
    assert model.training and not model.drop.training
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_is_what_the_formula_says():
    model = MLP(MLP.Config())
    found, masks = count(model, IMAGES, masked(model)), masks_of(model, 0.1)
    sparse, dense = forward_flops(masks, {})
    assert abs(found.forward(masks) - sparse / dense) < 1e-12
    steps = [found.training(masks, False)] * 100 + [found.training(masks, True)]
    assert abs(sum(steps) / 101 - train_flops_ratio(sparse, "mean_gradient", 100, dense)) < 1e-12
    assert found.training(masks_of(model, 0.1, 0.3), False) > found.training(masks, False)


def test_paths_through_a_network_are_those_that_its_masks_connect():
    model = MLP(MLP.Config())
    for density in (0.5, 0.01, 0.001):
        masks = masks_of(model, density)
        alive = sum(int(mask.sum()) for mask in effective(list(masks.masks.values())))
        assert abs(effective_sparsity(model, IMAGES[0][:1], masks) - (1 - alive / 266_200)) < 1e-12


@pytest.mark.parametrize("way", ["sparse", "smaller"])
def test_paths_are_the_same_where_only_active_weights_are_held(way):
    model = MLP(MLP.Config())
    masks = masks_of(model, 0.01) if way == "sparse" else masks_of(model, 1.0)
    wanted = effective_sparsity(model, IMAGES[0][:1], masks)
    for name, layer in layers_of(model, list(masks.masks)[1:])[0].items():
        layer.adopt(masks.update(name))
        put(model.get_parameter(name), layer.values(model.get_parameter(name).data))
        layer.choose(way)
    assert effective_sparsity(model, IMAGES[0][:1], masks) == wanted
    assert [parameter.ndim for parameter in model.parameters()].count(2) == 1


def test_biases_of_couplings_are_on_the_paths_of_their_neurons_and_begin_none():
    model = MLP(MLP.Config())
    masks = masks_of(model, 1.0)
    biases = {f"layers.{n}.bias": torch.arange(units) % 2 == 0 for n, units in enumerate((300, 100))}
    for n, kept in enumerate(biases.values()):
        masks.masks[f"layers.{n}.weight"][~kept] = False
        masks.masks[f"layers.{n + 1}.weight"][:, ~kept] = False
    masks = MaskSet({**masks.masks, **biases})
    assert abs(effective_sparsity(model, IMAGES[0][:1], masks) - masks.sparsity()) < 1e-12
    masks.masks["layers.0.weight"].zero_()
    assert effective_sparsity(model, IMAGES[0][:1], masks) == 1.0


def test_a_network_that_is_cut_has_no_path_and_one_with_norms_no_answer():
    model = MLP(MLP.Config())
    masks = masks_of(model, 0.5)
    masks.masks["layers.1.weight"].zero_()
    assert effective_sparsity(model, IMAGES[0][:1], masks) == 1.0
    gpt = GPT(GPT.Config(layers=1, width=16, heads=2, context=16))
    assert effective_sparsity(gpt, torch.zeros(1, 16, dtype=torch.int64), masks_of(gpt, 0.5)) is None
    only_loss = nn.Module()
    only_loss.weight = nn.Parameter(torch.ones(2, 2))
    assert effective_sparsity(only_loss, torch.ones(1, 2), MaskSet({"weight": torch.eye(2) > 0})) is None
