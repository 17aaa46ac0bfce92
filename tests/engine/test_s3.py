"""Checkpoints on a real S3 server: saved, resumed on another number of ranks, kept, pruned, damaged, and cut off."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import time

import fsspec
import pytest
from ranks import gloo_ranks
from s3_server import BUCKET, MISSING, s3_server
from small import job, run_and_die
from stores import damage, everything, publish

from sparsetrain.collective.world import World
from sparsetrain.engine.checkpoint import name_of
from sparsetrain.engine.keeping import problem
from sparsetrain.engine.remote_store import RemoteStore
from sparsetrain.engine.saver import Unsaved
from sparsetrain.engine.state import build
from sparsetrain.engine.store import open_store
from sparsetrain.engine.trainer import Trainer, train

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
URL = f"checkpoint.url=s3://{BUCKET}/runs"
EVERY = (URL, "checkpoint.every=3", "checkpoint.keep=2", "optimizer.momentum=0.9")


@pytest.fixture(scope="module")
def server():
    with s3_server() as (variables, process):
        yield variables, process


@pytest.fixture
def s3(server, monkeypatch):
    variables, process = server
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    forget_clients()
    yield process
    os.kill(process.pid, signal.SIGCONT)


def forget_clients() -> None:
    """fsspec keeps its clients, with the address that the variables named once."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def run(world: World, folder: str, options: tuple[str, ...]) -> tuple[dict, list[str]]:
    said: list[str] = []
    return train(job(*options), world, pathlib.Path(folder), said.append), said


def killed(world: World, folder: str, options: tuple[str, ...]) -> None:
    """Train, and die in the middle of step 7."""
    run_and_die(Trainer(build(job(*options), world), pathlib.Path(folder), lambda line: None), 6)


def steps(store) -> list[int]:
    return [int(name.removeprefix("step_")) for name in store.complete()]


@pytest.mark.parametrize("ranks", [(2, 1), *(pytest.param(r, marks=pytest.mark.slow) for r in ((1, 2), (2, 2)))])
def test_a_run_goes_on_from_s3_also_with_other_ranks(tmp_path, s3, ranks):
    options = (*EVERY, f"name=ranks{ranks[0]}{ranks[1]}", "cluster.workers={min: 1, max: 2}")
    options = (*options, "train.steps=9")
    gloo_ranks(ranks[0], functools.partial(killed, folder=str(tmp_path / "a"), options=options), seconds=120)
    store = open_store(job(*options), tmp_path)
    assert steps(store) == [3, 6]
    assert not (tmp_path / "a/checkpoints").exists()
    # On another machine: nothing is there but the job.
    second = functools.partial(run, folder=str(tmp_path / "b"), options=options)
    after = gloo_ranks(ranks[1], second, seconds=120)
    assert all("resumed from step_00000006" in said for _, said in after)
    assert len({result["weights_digest"] for result, _ in after}) == 1
    assert steps(store) == [6, 9]
    assert [problem(store, name) for name in store.complete()] == ["", ""]
    assert {file for file in store.sizes(name_of(9)) if file.startswith("residual")} == {
        f"residual.rank{rank:05d}.safetensors" for rank in range(ranks[1])
    }
    if ranks == (2, 2):
        straight = functools.partial(run, folder=str(tmp_path / "c"), options=(*options, "checkpoint.url=null"))
        found = gloo_ranks(2, straight)
        assert found[0][0]["weights_digest"] == after[0][0]["weights_digest"]


def test_half_written_and_damaged_ones_are_skipped_with_a_word_and_stay(tmp_path, s3):
    options = (*EVERY, "name=hurt")
    run(World(), str(tmp_path), (*options, "train.steps=9", "checkpoint.keep=9"))
    store = open_store(job(*options), tmp_path)
    damage(store, name_of(6), "model.safetensors", b"damaged")
    damage(store, name_of(9), "COMPLETE")
    _, said = run(World(), str(tmp_path), (*options, "train.steps=9", "checkpoint.keep=1"))
    assert any("checkpoint step_00000006 skipped" in line and "model.safetensors" in line for line in said)
    assert "resumed from step_00000003" in said
    assert everything(store) == {"step_00000006.aside", "step_00000009", "step_00000009.aside"}
    assert steps(store) == [9]


def test_rests_of_killed_attempts_go_and_nothing_else(s3):
    store = RemoteStore(f"s3://{BUCKET}/rests", 30)
    store.begin(name_of(2), 0, ["a"])
    store.begin(name_of(8), 0, ["a"])
    publish(store, 5)
    assert everything(store) == {"step_00000005", "step_00000008"}
    store.remove(name_of(5))
    assert everything(store) == {"step_00000008"}


@pytest.mark.slow
def test_a_store_that_hangs_and_comes_back_costs_checkpoints_only(tmp_path, s3):
    options = (*EVERY, "name=hanging", "checkpoint.timeout=2", "checkpoint.keep=9", "train.steps=15")
    said: list[str] = []
    trainer = Trainer(build(job(*options), World()), tmp_path, said.append)
    conclude = trainer._conclude

    def stopping(report):
        step = trainer.state.step
        trainer.saver._done_within(30)
        if step in (6, 10):
            os.kill(s3.pid, signal.SIGSTOP if step == 6 else signal.SIGCONT)
        conclude(report)

    trainer._conclude = stopping
    assert trainer.run()["steps"] == 15
    trainer.close("finished")
    assert steps(trainer.saver.store) == [3, 12, 15]
    lost = [line for line in said if "is not written" in line]
    assert len(lost) == 2 and all("has not answered for 2 s" in line for line in lost)


@pytest.mark.slow
def test_without_a_server_a_run_is_trained_but_none_begins_anew(tmp_path, monkeypatch, server):
    with s3_server() as (variables, process):
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        forget_clients()
        options = (*EVERY, "name=cut", "checkpoint.timeout=20", "train.steps=6")
        said: list[str] = []
        trainer = Trainer(build(job(*options), World()), tmp_path, said.append)
        conclude = trainer._conclude

        def cutting(report):
            if trainer.state.step == 2:
                process.kill()
                process.wait()
            conclude(report)

        trainer._conclude = cutting
        began = time.monotonic()
        with pytest.raises(Unsaved, match=r"^the last checkpoint, of step 6, cannot be written; what follows"):
            trainer.run()
        assert trainer.state.step == 6 and time.monotonic() - began < 90  # the last one is tried twice
        trainer.close("failed")
        assert sum("is not written" in line for line in said) == 3  # of step 4, and twice of step 6
        assert "a-test-secret" not in json.dumps(said)
        with pytest.raises(RuntimeError, match=r"s3://bucket/runs/cut failed, listing"):
            train(job(*options), World(), tmp_path / "anew", said.append)
