"""Back into a run from every store: with other ranks, past what is damaged."""

from __future__ import annotations

import functools
import pathlib

import pytest
from ranks import gloo_ranks
from small import job, run_and_die
from stores import KINDS, contents, damage

from sparsetrain.collective.world import World
from sparsetrain.engine.checkpoint import CheckpointError, name_of
from sparsetrain.engine.keeping import Keeper, problem
from sparsetrain.engine.resume import drop_after, resume
from sparsetrain.engine.state import build
from sparsetrain.engine.store import StoreError, open_store
from sparsetrain.engine.trainer import Trainer, train

EVERY = ("checkpoint.every=2", "optimizer.momentum=0.9")


def options_of(kind: str, folder: pathlib.Path, *more: str) -> tuple[str, ...]:
    urls = {"local": "null", "file": f"file://{folder}/far", "memory": f"memory://{folder.name}"}
    return (*EVERY, f"checkpoint.url={urls[kind]}", *more)


def stopped(world: World, folder: str, options: tuple[str, ...], step: int) -> list[str]:
    """Train and die in the middle of the step after `step`; what was said about checkpoints."""
    said: list[str] = []
    run_and_die(Trainer(build(job(*options), world), pathlib.Path(folder), said.append), step)
    return [line for line in said if "step_" in line]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["local", "file"])
def test_a_run_goes_on_with_one_rank_and_with_two_again(tmp_path, kind):
    options = options_of(kind, tmp_path, "cluster.workers={min: 1, max: 2}")
    store = open_store(job(*options), tmp_path)
    for size, step, before in ((2, 4, None), (1, 6, 4), (2, 10, 6)):
        said = gloo_ranks(size, functools.partial(stopped, folder=str(tmp_path), options=options, step=step))
        assert said == [[f"resumed from {name_of(before)}"] if before else []] * size
        assert store.complete()[-1] == name_of(step)
        assert sum(file.startswith("residual") for file in store.sizes(name_of(step))) == size
        assert problem(store, name_of(step)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_passed_over_and_stays(tmp_path, kind):
    options = options_of(kind, tmp_path)
    train(job(*options, "train.steps=6", "checkpoint.keep=9"), World(), tmp_path, lambda line: None)
    store = open_store(job(*options), tmp_path)
    damage(store, name_of(6), "model.safetensors", b"first damage")
    damage(store, name_of(4), "model.safetensors", b"second damage")
    said: list[str] = []
    train(job(*options, "train.steps=10", "checkpoint.keep=1"), World(), tmp_path, said.append)
    assert [line.split(",")[0] for line in said if "skipped" in line or "resumed" in line] == [
        "checkpoint step_00000006 skipped",
        "checkpoint step_00000004 skipped",
        "resumed from step_00000002",
    ]
    assert store.complete() == [name_of(10)]
    assert {b"first damage", b"second damage"} <= set(contents(store))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_one_that_nobody_came_past_is_not_removed_for_its_age(tmp_path, kind):
    options = options_of(kind, tmp_path, "checkpoint.keep=1")
    train(job(*options, "train.steps=2"), World(), tmp_path, lambda line: None)
    store = open_store(job(*options), tmp_path)
    damage(store, name_of(2), "optimizer.safetensors", b"damage")
    said: list[str] = []
    state = build(job(*options), World())
    trainer = Trainer(state, tmp_path, said.append)
    state.at = state.boundary = type(state.at)(step=3)
    trainer.run(resumes=False)
    trainer.close("finished")
    assert store.complete() == [name_of(2), name_of(12)]
    assert sum("step_00000002 is damaged and stays where it is: optimizer.safetensors" in line for line in said) == 1


def test_a_run_that_goes_back_writes_the_same_steps_again(tmp_path):
    said: list[str] = []
    trainer = Trainer(build(job(*EVERY, "checkpoint.keep=9"), World()), tmp_path, said.append)
    trainer.run()
    saver, state = trainer.saver, trainer.state
    assert resume(state, saver.keeper, said.append, until=5) and state.step == 4
    drop_after(saver.keeper, 4)
    assert saver.store.complete() == [name_of(2), name_of(4)]
    trainer.recorded = 4
    for step in (5, 6):
        trainer._conclude(trainer.train_step())
        assert trainer.state.step == step
    assert saver.open == [6]
    saver.finish()
    trainer.close("finished")
    assert saver.store.complete() == [name_of(2), name_of(4), name_of(6)]
    assert problem(saver.store, name_of(6)) == ""


def test_a_run_whose_store_cannot_be_asked_does_not_begin_anew(tmp_path):
    class Away:
        name = "s3://bucket/run"

        def complete(self):
            raise StoreError("s3://bucket/run has not answered")

    state = build(job(), World())
    with pytest.raises(CheckpointError, match="has not answered"):
        resume(state, Keeper(Away(), 1, 0, print), lambda line: None)
