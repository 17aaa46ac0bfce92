import pytest
import torch
from torch import nn

from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController


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
        masks.observe(step + 1, gradients(net, step))
        masks.mask_gradients()
        optimizer.step()
        optimizer.zero_grad()
        masks.mask_weights()
        masks.step(step + 1, optimizer)


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
    masks.observe(10, gradients(net, 3))
    report = masks.step(10, optimizer)
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


def test_the_words_first_and_last_exclude_the_ends():
    assert list(controller(model(), exclude=["first"]).masks.masks) == ["2.weight"]
    assert list(controller(model(), exclude=["last"]).masks.masks) == ["0.weight"]


def test_a_rule_gives_a_tensor_a_sparsity_of_its_own_and_climbs_with_the_ramp():
    masks = controller(model(), "gmp", rules={"2.*": 0.4}, distribution="uniform")
    assert masks.chooser.counts(0.8, {}) == {"0.weight": 120, "2.weight": 180}
    assert masks.chooser.counts(0.4, {}) == {"0.weight": 360, "2.weight": 240}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"method": "set", "distribution": "global"},
            r"masks\.distribution: global compares .* allowed: uniform",
        ),
        ({"method": "gmp", "structure": "fan_in", "distribution": "global"}, r"masks\.distribution: with fan_in every"),
        ({"structure": {"name": "n:m"}, "sparsity": 0.5}, r"masks\.distribution: erk with n:m"),
        ({"structure": {"name": "n:m"}, "distribution": "uniform"}, r"masks\.sparsity: 0\.8 with n:m; allowed: 0\.5"),
        ({"structure": {"name": "block", "rows": 7}}, r"masks\.structure: 0\.weight \[30, 20\] is not made of whole"),
        ({"exclude": ["lst"]}, r"masks\.exclude: lst names no tensor; allowed: .*; did you mean 'last'\?"),
        (
            {"method": "acdc", "schedule": {"name": "phases", "warmup": 0.9, "finish": 0.1}},
            r"masks\.schedule\.warmup: ends at step \d+; allowed: before finish",
        ),
        (
            {"method": "gmp", "schedule": {"name": "linear", "initial": 0.95}},
            r"masks\.schedule\.initial: 0\.95 with gmp, which grows nothing; allowed: at most 0\.8",
        ),
        (
            {"method": "taylor", "schedule": "phases"},
            r"masks\.schedule: phases with taylor, which grows nothing: .* allowed: any other, or masks\.method=acdc",
        ),
        (
            {"method": "obd", "schedule": {"name": "list", "at": [10, 20], "sparsities": [0.8, 0.7]}},
            r"masks\.schedule\.sparsities: fall with obd, which grows nothing; allowed: ascending",
        ),
        ({"rules": {"9.*": 0.5}}, r"masks\.rules: 9\.\* names no masked tensor; allowed: patterns of 0\.weight"),
        ({"schedule": {"name": "list", "at": [300]}}, r"masks\.schedule\.at: steps \[300\] must ascend"),
    ],
)
def test_parts_that_make_no_sense_together_are_refused_with_the_reason(options, says):
    with pytest.raises(JobError, match=says):
        controller(model(), **{"method": "rigl", **options})


def test_an_update_whose_scores_are_not_finite_waits_for_the_next_step():
    net = model()
    masks = controller(net)
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in gradients(net, 0).items()}
    masks.observe(10, bad)
    before = masks.masks.digest()
    assert masks.step(10, None) is None and masks.masks.digest() == before
    assert masks.is_update(11) and masks.watches(11) and masks.rank_state()["owed"] == 1.0
    masks.observe(11, gradients(net, 1))
    report = masks.step(11, None)
    assert report is not None and report.epoch == 1 and not masks.is_update(12)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_rank_that_dies_in_either_round_of_an_update_leaves_the_others_on_the_old_epoch(fails):
    net, calls = model(), []

    def gather(data: bytes) -> list[bytes]:
        calls.append(data)
        if len(calls) == fails:
            raise ConnectionError("rank 1 is gone")
        return [data, data]

    masks = controller(net, gather=gather)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    digest = masks.masks.digest()
    masks.observe(10, gradients(net, 0))
    with pytest.raises(ConnectionError):
        masks.step(10, None)
    assert masks.masks.digest() == digest and masks.masks.epoch == 0
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())


def test_the_forward_set_is_put_on_for_the_forward_pass_and_taken_off_again():
    net = model()
    masks = controller(net, "topkast", distribution="uniform")
    forward, update = masks.masks.masks["0.weight"], masks.masks.update("0.weight")
    assert int(forward.sum()) == 120 and int(update.sum()) == 180
    before = net[0].weight.detach().clone()
    x = torch.randn(5, 20)
    with masks.forward():
        assert torch.all(net[0].weight[~forward] == 0)
        assert torch.equal(net[0].weight[forward], before[forward])
        net(x).square().sum().backward()
    assert torch.equal(net[0].weight, before)
    assert torch.any(net[0].weight.grad[update & ~forward] != 0)


def test_dormant_weights_come_back_with_their_value_when_others_shrink_below_them():
    net = model()
    start = net[0].weight.detach().clone()
    masks = controller(net, "topkast", distribution="uniform", rescale_init=False)
    update = masks.masks.update("0.weight").clone()
    assert torch.equal(masks.dormant["0.weight"], torch.where(update, 0.0, start))
    with torch.no_grad():
        net[0].weight.mul_(0.0)
    masks.step(10, None)
    back = masks.masks.update("0.weight") & ~update
    assert int(back.sum()) == 180
    assert torch.equal(net[0].weight[back], start[back])
    assert torch.all(masks.dormant["0.weight"][masks.masks.update("0.weight")] == 0)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_momentum_begins_anew_with_a_dense_phase_also_in_weights_that_are_not_masked(kind):
    net = model()
    phases = {"name": "phases", "warmup": 10, "sparse": 10, "dense": 10, "finish": 90}
    masks = controller(net, "acdc", schedule=phases)
    optimizer = (
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if kind == "sgd"
        else torch.optim.AdamW(net.parameters(), lr=0.01)
    )
    field = "momentum_buffer" if kind == "sgd" else "exp_avg"
    train(net, masks, optimizer, 19)
    assert masks.masks.sparsity() == pytest.approx(0.8, abs=1e-3)
    assert torch.any(optimizer.state[net[0].bias][field] != 0)
    masks.step(20, optimizer)
    assert masks.masks.sparsity() == 0.0
    assert all(torch.all(optimizer.state[p][field] == 0) for p in net.parameters())
    if kind == "adamw":
        assert torch.all(optimizer.state[net[0].weight]["exp_avg_sq"] > 0)


def test_soft_mest_is_above_its_budget_between_updates_and_within_it_after_the_last():
    net = model()
    options = {"method": {"name": "mest", "soft": True, "drop_fraction": 0.4}, "distribution": "uniform"}
    masks, counts, kept = controller(net, **options), [], []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    assert masks.masks.counts()["0.weight"] == 120
    for step in masks.schedule.updates():
        masks.observe(step, gradients(net, step))
        report = masks.step(step, optimizer)
        counts.append(masks.masks.counts()["0.weight"])
        kept.append(int((report.old.masks["0.weight"] & report.new.masks["0.weight"]).sum()))
        assert report.target_sparsity == pytest.approx(1 - counts[-1] / 600, abs=1e-3)
    # 0.2 (1 + 0.4 / 2 (1 + cos(pi t / 75))) of 600 at t = 10, 20 ... 60; the last update, at 70, only prunes.
    assert counts == [166, 160, 151, 141, 132, 125, 120]
    assert min(kept) >= 120


def test_curvature_is_the_mean_of_the_squares_of_the_last_steps_mean_gradients():
    net = model()
    masks = controller(net, {"name": "obd", "window": 3})
    watched = [step for step in range(1, 31) if masks.watches(step)]
    assert watched == [8, 9, 10, 18, 19, 20, 28, 29, 30]
    for step in (8, 9, 10):
        masks.observe(step, gradients(net, step))
    expected = sum(gradients(net, step)["0.weight"].square() for step in (8, 9, 10)) / 3
    assert torch.allclose(masks.source.take()["0.weight"], expected)


def test_movement_scores_are_summed_over_all_steps_and_averaged_once():
    calls = []

    def mean(tensors):
        calls.append(1)
        return dict(tensors)

    net = model()
    config = adapter(Masks).validate_python({"method": "movement", "sparsity": 0.8, "every": 10})
    parameters = dict(net.named_parameters())
    masks = MaskController(config, parameters, maskable=["0.weight"], seed=0, steps=100, mean=mean)
    for step in range(1, 11):
        masks.observe(step, gradients(net, step))
    assert not calls
    expected = -sum(gradients(net, step)["0.weight"] for step in range(1, 11)) * net[0].weight
    assert torch.allclose(masks.source.take()["0.weight"], expected, atol=1e-6) and len(calls) == 1
