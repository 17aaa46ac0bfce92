import pytest
import torch
from torch import nn

from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.agreement import MaskDisagreement, agree
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.maskset import MaskSet


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def controller(net: nn.Module, method: str = "rigl", gather=None, **options) -> MaskController:
    config = adapter(Masks).validate_python({"method": method, "sparsity": 0.8, "every": 10, **options})
    names = ["0.weight", "2.weight"]
    return MaskController(config, dict(net.named_parameters()), maskable=names, seed=0, steps=100, gather=gather)


def gradients(net: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in net.named_parameters() if p.ndim == 2}


def train(net: nn.Module, masks: MaskController, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        net(torch.randn(8, 20)).square().mean().backward()
        masks.mask_gradients()
        optimizer.step()
        optimizer.zero_grad()
        masks.mask_weights()
        masks.step(step + 1, lambda step=step: gradients(net, step), optimizer)


@pytest.mark.parametrize("method", ["static", "gmp", "set", "rigl"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nothing_lives_outside_the_masks(method, kind):
    net = model()
    masks = controller(net, method)
    optimizer = (
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        if kind == "sgd"
        else torch.optim.AdamW(net.parameters(), lr=0.01)
    )
    train(net, masks, optimizer, 100)
    assert masks.masks.sparsity() == pytest.approx(0.8, abs=1e-3)
    assert masks.masks.epoch == (0 if method == "static" else 7)
    for name, mask in masks.masks.masks.items():
        parameter = dict(net.named_parameters())[name]
        assert torch.all(parameter[~mask] == 0)
        for field, value in optimizer.state[parameter].items():
            if torch.is_tensor(value) and value.shape == mask.shape:
                assert torch.all(value[~mask] == 0), field


def test_an_update_keeps_survivors_and_gives_grown_weights_a_mean_second_moment():
    net = model()
    masks = controller(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, masks, optimizer, 9)
    weight = net[0].weight
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    old_weight = weight.detach().clone()
    report = masks.step(10, lambda: gradients(net, 3), optimizer)
    old, new = report.old.masks["0.weight"], report.new.masks["0.weight"]
    stayed, grown = old & new, new & ~old
    assert grown.any() and report.grown == report.dropped
    after = optimizer.state[weight]
    assert torch.equal(weight[stayed], old_weight[stayed]) and torch.all(weight[grown] == 0)
    for field in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[field][stayed], before[field][stayed])
    assert torch.all(after["exp_avg"][grown] == 0)
    assert torch.allclose(after["exp_avg_sq"][grown], before["exp_avg_sq"][stayed].mean())
    assert torch.equal(after["step"], before["step"])


def test_masked_values_that_are_not_numbers_do_not_come_back():
    net = model()
    masks = controller(net)
    with torch.no_grad():
        net[0].weight[~masks.masks.masks["0.weight"]] = float("nan")
    net[0].weight.grad = torch.full_like(net[0].weight, float("nan"))
    masks.mask_weights()
    masks.mask_gradients()
    outside = ~masks.masks.masks["0.weight"]
    assert torch.all(net[0].weight[outside] == 0) and torch.all(net[0].weight.grad[outside] == 0)


def test_state_goes_round_and_masks_are_never_read_from_weights():
    net = model()
    masks = controller(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train(net, masks, optimizer, 50)
    state = masks.state_dict()
    fresh = controller(model())
    fresh.load_state_dict(state)
    assert fresh.masks.digest() == masks.masks.digest() and fresh.masks.epoch == masks.masks.epoch
    with pytest.raises(ValueError, match=r"mask of 0\.weight"):
        fresh.load_state_dict(
            {"packed": {**state["packed"], "0.weight": torch.zeros(3, dtype=torch.uint8)}, "epoch": 1}
        )


def test_initial_weights_are_rescaled_to_the_dense_variance():
    dense, sparse = model(), model()
    masks = controller(sparse, "static", distribution="uniform")
    kept = masks.masks.masks["0.weight"]
    assert torch.allclose(sparse[0].weight[kept], dense[0].weight[kept] / 0.2**0.5, rtol=2e-2)


def test_excluding_everything_is_a_mistake_of_the_job():
    with pytest.raises(JobError, match=r"masks\.exclude"):
        controller(model(), exclude=["*"])


def test_a_differing_rank_is_named_with_layer_and_index():
    base = {"a": torch.zeros(4, dtype=torch.bool), "b": torch.ones(2, 5, dtype=torch.bool)}
    ours = MaskSet(base, 3)
    flipped = {**base, "b": base["b"].clone()}
    flipped["b"][1, 2] = False
    theirs = MaskSet(flipped, 3)

    def gather(data: bytes) -> list[bytes]:
        other = (
            theirs.digest()
            if len(data) == 16
            else b"".join(bits.numpy().tobytes() for bits in theirs.packed().values())
        )
        return [data, other, data]

    with pytest.raises(MaskDisagreement, match=r"mask epoch 3: ranks \[1\] differ from rank 0, first at b\[7\]"):
        agree(ours, gather, "raise")
    assert agree(ours, gather, "rank0").first_difference(ours) is None
