"""Mistakes that other libraries of sparse training made, as they show in the loop; see tests/masks/test_traps.py."""

import pathlib

import pytest
import torch
from small import job

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer

LOSSLESS = ("exchange.regime=packed", "exchange.values=fp32", "exchange.density=1.0")


def quiet(line: str) -> None:
    return


def trainer(*overrides: str, world: World | None = None) -> Trainer:
    return Trainer(build(job(*LOSSLESS, *overrides), world or World()), pathlib.Path("unused"), quiet)


def watched(loop: Trainer) -> list[dict[str, torch.Tensor]]:
    """Return a list that fills with what the masks observe."""
    seen: list[dict[str, torch.Tensor]] = []
    observe = loop.state.masks.observe

    def noting(step: int, gradients: dict[str, torch.Tensor]) -> None:
        seen.append({name: gradient.clone() for name, gradient in gradients.items()})
        observe(step, gradients)

    loop.state.masks.observe = noting
    return seen


def test_t1_scores_are_the_gradient_of_the_whole_batch_however_many_ranks_share_it():
    """T1: one rank with a batch of four and two ranks with two each grow the same weights."""

    first = trainer().state.parameters

    def body(world: World) -> tuple[bytes, dict[str, torch.Tensor]]:
        loop = trainer("optimizer.learning_rate=0.001", f"train.batch_size={4 // world.size}", world=world)
        with torch.no_grad():
            for name, parameter in loop.state.parameters.items():
                parameter.copy_(first[name])  # simulated ranks are threads: they draw from one generator
        seen = watched(loop)
        while loop.state.step < 4:
            loop.train_step()
        return loop.state.masks.masks.digest(), seen[0]

    ((alone, whole),) = Simulation(1).run(body)
    shared = Simulation(2).run(body)
    assert [digest for digest, _ in shared] == [alone, alone]
    for name, gradient in whole.items():
        assert torch.allclose((shared[0][1][name] + shared[1][1][name]) / 2, gradient, atol=1e-6)
        assert not torch.allclose(shared[0][1][name], gradient, atol=1e-6)


def test_t16_scores_are_those_of_the_accumulated_and_averaged_gradient():
    """T16: the last micro-batch alone, or the sum of them, is not the gradient of the step."""
    found = []
    for settings in (("train.batch_size=4",), ("train.batch_size=2", "train.accumulate=2")):
        loop = trainer("optimizer.learning_rate=0.001", *settings)
        seen = watched(loop)
        while loop.state.step < 4:
            loop.train_step()
        found.append((seen[0], loop.state.masks.masks.masks))
    for name, gradient in found[0][0].items():
        assert torch.allclose(gradient, found[1][0][name], atol=1e-6)
        assert torch.equal(found[0][1][name], found[1][1][name])


@pytest.mark.parametrize("every", [1, 2])
def test_t17_the_norm_is_that_of_active_gradients_also_at_an_update(every):
    """T17: the dense gradient that a growth rule looks at would inflate the norm and shrink that step."""
    loop = trainer(f"exchange.every={every}", "train.evaluate_every=2", "train.clip=0.01")
    state, forward = loop.state, loop._forward_backward
    expected, inflated = [], []

    def noting() -> None:
        forward()
        active, whole = [], []
        for name, parameter in state.parameters.items():
            limit = state.masks.masks.limits.get(name)
            gradient = parameter.grad
            whole.append(gradient.norm())
            active.append((gradient if limit is None else torch.where(limit, gradient, 0.0)).norm())
        expected.append(float(torch.stack(active).norm()))
        inflated.append(float(torch.stack(whole).norm()))

    loop._forward_backward = noting
    reports = [loop.train_step() for _ in range(9)]
    assert [step for step, report in enumerate(reports, 1) if report] == [4, 8]
    assert loop.recorder.window.norms == pytest.approx(expected, rel=1e-5)
    assert all(norm > 1.001 * other for norm, other in zip(inflated, expected, strict=True))


def test_t19_tied_weights_stay_one_tensor_and_dense():
    """T19: a parametrised head is a copy of the embedding from then on."""
    loop = trainer()
    while loop.state.step < 5:
        loop.train_step()
    model = loop.state.model
    assert model.head.weight is model.embed.weight
    assert not any("embed" in name or "head" in name or "norm" in name for name in loop.state.masks.masks.masks)
    assert torch.all(model.embed.weight.count_nonzero(1) > 0)


def test_t24_an_updating_step_also_moves_the_weights_and_no_counter_skips():
    """T24: where the update replaces the optimizer's step, schedules and step counts part from the number of steps."""
    loop = trainer("optimizer={name: adamw, learning_rate: 0.01}")
    state = loop.state
    rates = []
    for step in range(1, 6):
        before = {name: parameter.detach().clone() for name, parameter in state.masks.parameters.items()}
        report = loop.train_step()
        rates.append(state.optimizer.param_groups[0]["lr"])
        for name, parameter in state.masks.parameters.items():
            assert int(state.optimizer.state[parameter]["step"]) == step
            stayed = (
                state.masks.masks.masks[name] if report is None else report.old.masks[name] & report.new.masks[name]
            )
            assert (parameter != before[name])[stayed].float().mean() > 0.9
        assert (report is not None) == (step == 4)
    train = state.job.train
    assert rates == [0.01 * factor_at(step, train.steps, train.warmup, train.final_learning_rate) for step in range(5)]
