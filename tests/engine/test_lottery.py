"""Train, prune, rewind, as one job that may be killed anywhere."""

import functools
import pathlib

import pytest
import torch
from ranks import gloo_ranks
from safetensors.torch import load_file
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.engine import checkpoint
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer, train

# Three rounds in 18 steps from step 2 on: L = (18 + 3 x 2) / 4 = 6, prunes after 6, 10 and 14.
ROUNDS = (
    "masks.method=lottery",
    "masks.schedule={name: rounds, rounds: 3, rewind: 2}",
    "masks.distribution=global",
    "masks.sparsity=0.488",  # 1 - 0.8^3
    "train.steps=18",
    "optimizer.momentum=0.9",
    "exchange.every=1",
)
PRUNES = (6, 10, 14)


def quiet(line: str) -> None:
    return


def trainer_of(world: World, *settings: str) -> Trainer:
    return Trainer(build(job(*ROUNDS, *settings), world), pathlib.Path("unused"), quiet)


def copies(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.state.parameters.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("exchange.every=2", "exchange.outer.momentum=0.5"),
        ("exchange.error_feedback=ef21_sgdm", "optimizer.name=sgd"),
        ("exchange.residual=int8", "exchange.sparsifier=threshold"),
    ],
    ids=["plain", "local", "ef21", "int8"],
)
def test_after_each_prune_survivors_have_the_bits_of_the_early_step_and_nothing_else_is_left(optimizer, settings):
    base = [setting for setting in ROUNDS if optimizer == "sgd" or "momentum" not in setting]
    trainer = Trainer(
        build(job(*base, f"optimizer.name={optimizer}", *settings), World()), pathlib.Path("unused"), quiet
    )
    state, early, densities = trainer.state, {}, []
    while state.step < 16:
        before = copies(trainer)
        report = trainer.train_step()
        if state.step == 2:
            early = copies(trainer)
        assert (report is not None and report.rewound) == (state.step in PRUNES)
        masks = state.masks.masks.masks
        if report:
            sizes = sum(mask.numel() for mask in masks.values())
            densities.append(sum(state.masks.masks.counts().values()))
            assert densities[-1] == round(0.8 ** len(densities) * sizes)
            for name, parameter in state.parameters.items():
                expected = torch.where(masks[name], early[name], 0.0) if name in masks else early[name]
                assert torch.equal(parameter, expected), name
                assert not torch.equal(before[name], early[name])
            assert not state.optimizer.state
            kept = {key: tensor for key, tensor in state.exchange.state().items() if not key.startswith("collective/")}
            assert kept and all(torch.all(tensor == 0) for tensor in kept.values())
            assert all(torch.all(tensor == 0) for tensor in state.update.state().values())
        elif state.step > 2 and state.step % 2 == 0:
            assert any(torch.any(tensor != 0) for tensor in state.exchange.state().values())
    assert len(densities) == 3


def test_a_prune_takes_a_fifth_of_the_survivors_by_the_size_of_trained_weights():
    trainer = trainer_of(World())
    state, trained = trainer.state, {}
    step = state.masks.step

    def looking(number: int, optimizer: object) -> object:
        trained.update({name: p.detach().clone() for name, p in state.masks.parameters.items()})
        return step(number, optimizer)

    state.masks.step = looking
    while state.step < 10:
        old = {name: mask.clone() for name, mask in state.masks.masks.masks.items()}
        report = trainer.train_step()
        if report:
            alive = torch.cat([trained[name][old[name]].abs() for name in old])
            kept = torch.cat([report.new.masks[name][old[name]] for name in old])
            assert alive[kept].min() >= alive[~kept].max()
            assert int(kept.sum()) == pytest.approx(0.8 * len(alive), abs=1)


def test_the_learning_rate_begins_anew_at_the_early_step():
    trainer = trainer_of(World())
    rates = []
    while trainer.state.step < 18:
        trainer.train_step()
        rates.append(trainer.state.optimizer.param_groups[0]["lr"])
    whole = [0.1 * factor_at(step, 6, 0.05, 0.1) for step in range(6)]
    assert rates == pytest.approx([*whole, *whole[2:], *whole[2:], *whole[2:]])


def killed_at(world: World, step: int, folder: pathlib.Path, *settings: str) -> None:
    """Train until `step` steps are finished and saved, and die."""
    trainer = Trainer(build(job(*ROUNDS, "checkpoint.every=1", *settings), world), folder, quiet)
    run_and_die(trainer, step)
    trainer.recorder.close("failed")


def tensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.complete(folder / "checkpoints")[-1]
    return {f"{f.name}/{k}": t for f in sorted(newest.glob("*.safetensors")) for k, t in load_file(f).items()}


def check_resumes(world: World, folder: pathlib.Path, steps: tuple[int, ...]) -> list[str]:
    """Return the digests of a straight run and of runs that died and went on; compare all that they saved."""
    digests = [train(job(*ROUNDS, "checkpoint.every=1"), world, folder / "straight", quiet)["weights_digest"]]
    straight = tensors(folder / "straight")
    for step in steps:
        killed_at(world, step, folder / str(step))
        found = train(job(*ROUNDS, "checkpoint.every=1"), world, folder / str(step), quiet)
        digests.append(found["weights_digest"])
        again = tensors(folder / str(step))
        assert again.keys() == straight.keys()
        assert all(torch.equal(again[key], tensor) for key, tensor in straight.items()), step
    return digests


def test_a_run_killed_before_at_and_after_a_rewind_or_the_early_step_goes_on_bit_for_bit(tmp_path):
    assert len(set(check_resumes(World(), tmp_path, (1, 2, 3, 5, 6, 7, 10, 17)))) == 1


@pytest.mark.timeout(120)
def test_two_ranks_agree_and_resume_bit_for_bit(tmp_path):
    one, two = gloo_ranks(2, functools.partial(check_resumes, folder=tmp_path, steps=(5, 6, 7)))
    assert one == two and len(set(one)) == 1


def test_each_round_is_evaluated_before_its_weights_are_gone(tmp_path):
    import json

    train(job(*ROUNDS, "log.every=100"), World(), tmp_path, quiet)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ends = {row["train/step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert sorted(ends) == [6, 10, 12, 14, 18]
    trainer = trainer_of(World())
    while trainer.state.step < 5:
        trainer.train_step()
    rewind, found = trainer.state.masks.step, []

    def before(step: int, optimizer: object) -> object:
        found.append(trainer._evaluate()["eval/loss"])
        return rewind(step, optimizer)

    trainer.state.masks.step = before
    trainer.train_step()
    assert ends[6] == pytest.approx(found[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("masks.schedule=cubic",), r"masks\.schedule: cubic with lottery, which rewinds; allowed: rounds"),
        (("masks.method=gmp",), r"masks\.schedule: rounds with gmp, which does not rewind; allowed: constant, cosine"),
        (
            ("masks.schedule.rewind=15",),
            r"masks\.schedule\.rewind: step 15 with 3 rounds in 18 steps; allowed: below 15",
        ),
        (("masks.schedule.rewind=3", "exchange.every=2"), r"masks\.schedule: weights to rewind to after step 3, which"),
    ],
)
def test_what_makes_no_sense_with_it_is_refused(settings, says):
    with pytest.raises(JobError, match=says):
        build(job(*ROUNDS, *settings), World())
