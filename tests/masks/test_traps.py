"""Mistakes that other libraries of sparse training made, one test each (or beside the code that they are about).

The numbers are those of the list of traps: T3, T4, T5, T9, T10, T21, T22 and T25 are in test_layout, test_select,
test_distribution, test_schedule and test_methods; those that need the loop are in tests/engine/test_traps.py.
"""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moments import flat
from torch import nn

from sparsetrain.collective.simulated import Simulation
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.distribution import exact_counts
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.regrower import drop_and_grow

SHAPE = (64, 64)


def controller(world=None, method: object = "rigl", weight: torch.Tensor | None = None, **options) -> MaskController:
    """Return a controller of one tensor, with an update at step 10."""
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) if weight is None else weight
    tree = {"method": method, "sparsity": 0.9, "every": 10, "rescale_init": False, **options}
    return MaskController(
        adapter(Masks).validate_python(tree),
        {"w": nn.Parameter(start)},
        maskable=["w"],
        seed=0,
        steps=100,
        gather=world and world.transport.gather_bytes,
        mean=world and (lambda tensors: world.transport.mean(tensors, "mask")),
    )


def noise(rank: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + rank))


def grown(masks: MaskController, gradient: torch.Tensor) -> set[int]:
    before = masks.masks.masks["w"]
    masks.observe(10, {"w": gradient})
    masks.step(10, None)
    return set(torch.nonzero((masks.masks.masks["w"] & ~before).flatten()).flatten().tolist())


@pytest.mark.parametrize("ranks", [2, 4])
def test_t1_local_gradients_do_not_decide(ranks):
    """T1: hooks see the local gradient; a rank alone with its own would grow other weights."""
    together = Simulation(ranks).run(lambda world: grown(controller(world), noise(world.rank)))
    assert all(each == together[0] for each in together)
    own = grown(controller(), noise(0))
    assert len(own & together[0]) < 0.5 * len(own)


@pytest.mark.parametrize("ranks", [2, 4])
def test_t2_the_size_of_the_mean_is_averaged_and_not_the_mean_of_sizes(ranks):
    """T2: |mean g| and mean |g| share 54 % of what is grown at two ranks, 32 % at four."""
    together = Simulation(ranks).run(lambda world: grown(controller(world), noise(world.rank)))[0]
    gradients = torch.stack([noise(rank) for rank in range(ranks)])
    assert together == grown(controller(), gradients.mean(0))
    wrong = grown(controller(), gradients.abs().mean(0))
    assert len(wrong & together) / len(together) == pytest.approx({2: 0.54, 4: 0.32}[ranks], abs=0.12)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad", "SGD", "Adadelta"])
def test_t6_no_state_of_any_optimizer_lives_outside_the_mask(name):
    """T6: others mask `momentum_buffer` alone, or the first moment three times and the second never."""
    masks = controller()
    options = {"AdamW": {"amsgrad": True}, "SGD": {"momentum": 0.9, "weight_decay": 0.1}, "RMSprop": {"momentum": 0.9}}
    weight = masks.parameters["w"]
    optimizer = getattr(torch.optim, name)([weight], lr=0.1, **options.get(name, {}))
    for step in range(1, 12):
        weight.grad = noise(step)
        masks.observe(step, {"w": weight.grad})
        masks.mask_gradients()
        optimizer.step()
        masks.mask_weights()
        masks.step(step, optimizer)
        outside = ~masks.masks.masks["w"]
        tensors = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
        assert tensors and all(torch.all(value[outside] == 0) for value in (weight, *tensors))
    assert masks.masks.epoch == 1


@pytest.mark.parametrize(
    ("state", "size"), [("fresh", 1.0), ("zeros", 2.515), ("second moment kept", 0.1), ("ours", 0.1)]
)
def test_t6_the_first_step_of_a_regrown_weight(state, size):
    """T6 b: at step 1001 a second moment of zero makes it 2.515 learning rates, 1 is what a fresh start gives, and the
    mean second moment of the others (here all 1) makes it what any weight takes whose momentum begins anew: 0.1."""
    masks = controller()
    weight = masks.parameters["w"]
    optimizer = torch.optim.Adam([weight], lr=1e-3, eps=0.0)
    weight.grad = torch.ones(SHAPE)
    optimizer.step()
    held = optimizer.state[weight]
    held["step"].fill_(0 if state == "fresh" else 1000)
    held["exp_avg"].fill_(1 - 0.9 ** float(held["step"]))
    held["exp_avg_sq"].fill_(1 - 0.999 ** float(held["step"]))
    masks.observe(10, {"w": noise(0)})
    if state == "ours":
        masks.step(10, optimizer)
        before = weight.detach().clone()
        chosen = (before == 0) & masks.masks.masks["w"]
        assert chosen.any()
    else:
        before = weight.detach().clone()
        chosen = torch.ones(SHAPE, dtype=torch.bool)
        held["exp_avg"].zero_()
        if state in ("zeros", "fresh"):
            held["exp_avg_sq"].zero_()
    weight.grad = torch.ones(SHAPE)
    optimizer.step()
    moved = (weight.detach() - before).abs()[chosen] / 1e-3
    assert torch.allclose(moved, torch.full_like(moved, size), rtol=2e-3, atol=1e-4)


def test_t7_active_weights_of_value_zero_stay_active_across_a_checkpoint():
    """T7: masks read from `w != 0` lose them."""
    masks = controller()
    with torch.no_grad():
        masks.parameters["w"].zero_()
    again = controller(weight=torch.zeros(SHAPE))
    again.load_state_dict(masks.state_dict())
    assert again.masks.digest() == masks.masks.digest()
    assert again.masks.counts()["w"] == round(0.1 * 64 * 64)


@given(st.integers(10_000_000, 2**40), st.integers(1, 999))
def test_t8_counts_of_huge_tensors_are_exact(size, thousandths):
    """T8: a density in fp32 is off by one above ten million weights, by six at a hundred million."""
    counts = exact_counts({"w": thousandths / 1000}, {"w": (size,)}, 1 - thousandths / 1000)
    assert abs(counts["w"] - size * thousandths / 1000) <= 0.5 + size * 2.0**-50


def test_t8_the_number_of_active_weights_never_drifts():
    """T8: drawing growth by coin flips lets it walk."""
    draw, layout = torch.Generator().manual_seed(0), flat((1000,))
    mask = layout.random(137, draw)
    for _ in range(100):
        keep, grow = torch.rand(2, 1000, generator=draw)
        mask = drop_and_grow(layout, mask, keep, grow, 0.3, 137)
        assert int(mask.sum()) == 137


@pytest.mark.parametrize("field", ["weight", "gradient", "optimizer"])
def test_t11_what_is_not_a_number_outside_the_mask_does_not_spread(field):
    """T11: 0 x nan is nan, so nothing may be masked by multiplication."""
    masks = controller()
    weight = masks.parameters["w"]
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(SHAPE)
    optimizer.step()
    outside = ~masks.masks.masks["w"]
    held = {"weight": weight.data, "gradient": weight.grad, "optimizer": optimizer.state[weight]["momentum_buffer"]}
    held[field][outside] = float("nan")
    masks.mask_gradients()
    masks.mask_weights()
    masks.observe(10, {"w": noise(0)})
    masks.step(10, optimizer)
    assert torch.isfinite(weight).all() and torch.isfinite(weight.grad).all()
    assert torch.isfinite(optimizer.state[weight]["momentum_buffer"]).all()


def test_t12_loading_leaves_the_callers_state_as_it_was_and_masks_outlive_a_cast():
    """T12: a loader that pops masks out of the caller's dictionary makes the second load an unmasked one."""
    masks = controller(method="topkast")
    state = masks.state_dict()
    kept = copy.deepcopy(state)
    for _ in range(2):
        again = controller(method="topkast")
        again.load_state_dict(state)
        assert again.masks.digest() == masks.masks.digest()
    assert state.keys() == kept.keys() and state["packed"].keys() == kept["packed"].keys()
    weight = masks.parameters["w"]
    weight.data = weight.data.double()
    weight.data[:] = 1.0
    masks.mask_weights()
    assert torch.equal(weight != 0, masks.masks.update("w"))


@pytest.mark.parametrize("name", ["gmp", "rigl"])
def test_t13_the_schedule_goes_on_where_it_was(name):
    """T13: a schedule whose state is never restored begins anew."""
    straight, resumed = controller(method=name), controller(method=name)
    for step in range(1, 41):
        straight.observe(step, {"w": noise(step)})
        straight.step(step, None)
    resumed.load_state_dict(straight.state_dict())
    with torch.no_grad():
        resumed.parameters["w"].copy_(straight.parameters["w"])
    reports = []
    for masks in (straight, resumed):
        assert [step for step in range(41, 100) if masks.is_update(step)] == [50, 60, 70]
        masks.observe(50, {"w": noise(50)})
        reports.append(masks.step(50, None))
    assert reports[0].target_sparsity == reports[1].target_sparsity
    assert reports[0].new.digest() == reports[1].new.digest() and reports[0].epoch == 5


@pytest.mark.parametrize("name", ["static", "set", "mest", "movement"])
def test_t14_global_random_states_of_the_ranks_do_not_matter(name):
    """T14: shuffling with each process's own generator gives each rank a mask of its own."""

    def body(world) -> bytes:
        torch.manual_seed(world.rank)
        random.seed(world.rank)
        np.random.seed(world.rank)
        masks = controller(world, name)
        for step in range(1, 21):
            masks.observe(step, {"w": noise(step)})
            masks.step(step, None)
        return masks.masks.digest()

    assert len(set(Simulation(3).run(body))) == 1


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_t18_an_optimizer_step_moves_masked_weights_and_masking_after_it_undoes_that(name):
    """T18: a gradient of zero is not enough: momentum and moments still move what they moved before."""
    masks = controller()
    weight = masks.parameters["w"]
    kind = {"SGD": {"momentum": 0.9}, "AdamW": {"weight_decay": 0.1}}[name]
    optimizer = getattr(torch.optim, name)([weight], lr=0.1, **kind)
    weight.grad = torch.ones(SHAPE)  # as if everything had been active
    optimizer.step()
    outside = ~masks.masks.masks["w"]
    masks.mask_weights()
    masks.mask_gradients()
    optimizer.step()
    assert torch.any(weight[outside] != 0)
    masks.mask_weights()
    assert torch.all(weight[outside] == 0)


def test_t18_terms_that_pull_at_weights_leave_those_outside_the_update_set_alone():
    """T18: decay, L1 and the like belong to active weights."""
    masks = controller(method={"name": "topkast", "penalty": 1.0})
    weight = masks.parameters["w"]
    weight.data = torch.where(masks.masks.update("w"), weight.data, 3.0)  # were one to live there
    weight.grad = torch.zeros(SHAPE)
    masks.pull(1)
    outside = ~masks.masks.update("w")
    assert torch.all(weight.grad[outside] == 0) and torch.any(weight.grad != 0)


@pytest.mark.parametrize("place", ["first", "last"])
def test_t20_the_first_and_the_last_layer_stay_dense_where_the_job_says_so(place):
    """T20: published figures of high sparsity need a dense first layer."""
    tensors = {name: nn.Parameter(torch.randn(8, 8)) for name in "abc"}
    config = adapter(Masks).validate_python({"exclude": [place], "sparsity": 0.9})
    masks = MaskController(config, tensors, maskable=list("abc"), seed=0, steps=10)
    dense = {"first": "a", "last": "c"}[place]
    assert list(masks.masks.masks) == [name for name in "abc" if name != dense]
    masks.mask_weights()
    assert torch.all(tensors[dense] != 0)


def test_t23_ranks_whose_sums_differ_in_one_bit_are_told_apart():
    """T23: a reduction that is not the same bits on all ranks shows in the digest before anything is sent on."""
    mask = torch.zeros(1000, dtype=torch.bool)
    one = MaskSet({"w": mask.clone()}, 1).digest()
    mask[999] = True
    assert one != MaskSet({"w": mask}, 1).digest() != MaskSet({"w": mask}, 2).digest()
