import functools

import pytest
import torch
from ranks import gloo_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsetrain.collective.transport import Alone
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.hook import HookState, comm_hook


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 5))


def trained(world: World, options: dict | None) -> dict:
    """Four DDP steps in several small buckets; `options` None is stock DDP."""
    net = model()
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.01)
    state = None
    if options is not None:
        config = adapter(Exchange).validate_python({"dense_below": 50, **options})
        state = HookState(config, net, world, steps=4)
        ddp.register_comm_hook(state, comm_hook)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(world.rank)
    sent = torch.zeros(())
    for _ in range(4):
        optimizer.zero_grad()
        ddp(torch.randn(8, 20, generator=generator)).square().mean().backward()
        optimizer.step()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    residuals = state.state() if state else {}
    return {"weights": weights, "residuals": residuals, "buckets": len(state.exchanges) if state else 0, "sent": sent}


@pytest.mark.timeout(120)
def test_k_equal_n_is_stock_ddp_bit_for_bit_across_the_bucket_rebuild():
    stock = gloo_ranks(2, functools.partial(trained, options=None))
    ours = gloo_ranks(2, functools.partial(trained, options={"density": 1.0, "values": "fp32"}))
    assert ours[0]["buckets"] > 1
    for rank in range(2):
        for name, weight in stock[rank]["weights"].items():
            assert torch.equal(ours[rank]["weights"][name], weight), name


@pytest.mark.timeout(120)
def test_sparse_hook_keeps_replicas_equal_and_residuals_by_name():
    ranks = gloo_ranks(2, functools.partial(trained, options={"density": 0.05}))
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(ranks[1]["weights"][name], weight), name
    assert set(ranks[0]["residuals"]) >= {"residual/0.weight", "residual/2.weight", "residual/4.weight"}
    assert all(float(residual.norm()) > 0 for residual in ranks[0]["residuals"].values())


def test_a_new_bucket_inherits_the_residuals_of_its_parameters():
    net = model()
    config = adapter(Exchange).validate_python({"dense_below": 50, "density": 0.05})
    state = HookState(config, net, World(), steps=4)
    gradients = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    state.exchange_of(tuple(gradients), gradients).aggregate(gradients)
    before = state.state()
    first = {name: gradients[name] for name in list(gradients)[:2]}
    rest = {name: gradients[name] for name in list(gradients)[2:]}
    state.exchange_of(tuple(first), first)
    state.exchange_of(tuple(rest), rest)
    after = state.state()
    assert len(state.exchanges) == 2 and set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_local_steps_are_no_business_of_a_hook():
    config = adapter(Exchange).validate_python({"every": 5})
    with pytest.raises(JobError, match=r"^exchange\.every: 5 in a hook, .* allowed: 1$"):
        HookState(config, model(), World(rank=0, size=1, transport=Alone()), steps=4)
