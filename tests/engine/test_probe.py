import functools
import itertools
import pathlib

import pytest
import torch
from ranks import gloo_ranks
from small import job
from torch import nn

from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.engine.flow import flow
from sparsetrain.engine.probe import ModelProbe
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.methods.synflow import SynFlow


def probe(*overrides: str) -> ModelProbe:
    state = build(job("masks.method=snip", "train.batch_size=2", *overrides), World())
    return ModelProbe(state)


def test_the_gradient_is_that_of_the_first_batches_and_leaves_no_trace():
    asked = probe()
    state = asked.state
    found = asked.gradient(2)
    assert all(p.grad is None for p in state.parameters.values())
    losses = [state.model.loss(state.data.train_batch(state.sampler.indices(n * 2))) for n in range(2)]
    (sum(losses) / 2).backward()
    for name, gradient in found.items():
        assert torch.allclose(gradient, state.parameters[name].grad, atol=1e-7), name


def test_h_g_is_the_change_of_the_gradient_along_itself():
    asked = probe()
    gradient, product = asked.gradient(1), asked.hessian_gradient(1)
    step = 1e-2
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, part in gradient.items():
                asked.state.parameters[name].add_(part, alpha=sign * step)
        found.append(asked.gradient(1))
        with torch.no_grad():
            for name, part in gradient.items():
                asked.state.parameters[name].sub_(part, alpha=sign * step)
    for name in gradient:
        change = (found[0][name] - found[1][name]) / (2 * step)
        assert torch.allclose(product[name], change, atol=3e-2 * float(product[name].abs().max())), name


class Chain(nn.Sequential):
    """22 layers of width 32 without biases, normal weights of seed 0: 22,848 weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = [64, *[32] * 21, 10]
        layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
        super().__init__(*(each for layer in layers for each in (layer, nn.ReLU())), nn.Flatten())

    def sums(self) -> list[float]:
        parts = flow(self, torch.zeros(1, 64))
        return [float((p.detach().double().abs() * parts[name]).sum()) for name, p in self.named_parameters()]


def test_flow_is_conserved_from_layer_to_layer():
    net = Chain()
    assert sum(p.numel() for p in net.parameters()) == 22_848
    sums = net.sums()
    assert max(sums) == pytest.approx(min(sums), rel=1e-15) and min(sums) > 0


class Asked:
    """A probe of a chain: its flow, and the gradient of a loss on made-up data."""

    def __init__(self, net: Chain) -> None:
        self.net = net

    def flow(self) -> dict[str, torch.Tensor]:
        return flow(self.net, torch.zeros(1, 64))

    def gradient(self, batches: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(1)
        inputs, classes = torch.randn(128, 64, generator=draw), torch.randint(10, (128,), generator=draw)
        loss = nn.functional.cross_entropy(self.net(inputs), classes)
        named = dict(self.net.named_parameters())
        return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def least(method: str, compression: float, **options) -> int:
    """Return the weights of the smallest layer after one global pruning; the sum over layers is exact."""
    net = Chain()
    parameters = dict(net.named_parameters())
    tree = {
        "method": {"name": method, **options},
        "distribution": "global",
        "sparsity": 1 - 1 / compression,
        "rescale_init": False,
        "every": 1,
    }
    masks = MaskController(
        adapter(Masks).validate_python(tree), parameters, maskable=list(parameters), seed=0, steps=10
    )
    if masks.waits:
        masks.initialise(Asked(net))
    masks.step(1, None)
    counts = masks.masks.counts().values()
    assert sum(counts) == round(22_848 / compression)
    return min(counts)


COMPRESSIONS = (10, 100, 300, 800)


@pytest.mark.slow
def test_synflow_in_rounds_collapses_no_layer_up_to_the_greatest_compression():
    assert [least("synflow", each) for each in COMPRESSIONS] == [85, 5, 3, 1]


def test_one_round_sensitivity_and_size_collapse_layers():
    assert [least("synflow", each, iterations=1) for each in COMPRESSIONS] == [1, 0, 0, 0]
    assert [least("magnitude", each) for each in COMPRESSIONS] == [32, 0, 0, 0]
    assert [least("snip", each) for each in COMPRESSIONS[1:]] == [0, 0, 0]


def test_synflow_densities_fall_geometrically():
    assert [1 - s for s in SynFlow(SynFlow.Config(iterations=2)).rounds(0.99)] == pytest.approx([0.1, 0.01])


def test_a_model_that_lets_nothing_through_is_refused():
    with pytest.raises(JobError, match=r"masks\.method: synflow finds no flow"):
        probe().flow()


def first_masks(world: World, method: str) -> str:
    trainer = Trainer(
        build(job(f"masks.method={method}", "masks.distribution=global"), world), pathlib.Path("unused"), print
    )
    trainer.state.masks.initialise(ModelProbe(trainer.state))
    return trainer.state.masks.masks.digest().hex()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_two_ranks_choose_the_same_masks_before_training(method):
    found = gloo_ranks(2, functools.partial(first_masks, method=method))
    assert found[0] == found[1]
