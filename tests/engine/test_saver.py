"""Checkpoints that cannot be written: training goes on, and the next one is tried."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import threading
import time

import pytest
from ranks import gloo_ranks
from small import job

from sparsetrain.collective.world import World
from sparsetrain.engine.checkpoint import name_of
from sparsetrain.engine.keeping import problem
from sparsetrain.engine.local_store import LocalStore
from sparsetrain.engine.pieces import capture, restore
from sparsetrain.engine.saver import Saver, Unsaved
from sparsetrain.engine.state import build
from sparsetrain.engine.store import StoreError
from sparsetrain.engine.trainer import Trainer, train
from sparsetrain.track.jsonl import read


class Faulty(LocalStore):
    """Fails, or does not answer, for the steps that it is told."""

    def __init__(self, root: pathlib.Path, failing: tuple[str, ...] = (), hanging: tuple[str, ...] = ()) -> None:
        super().__init__(root)
        self.failing = failing
        self.hanging = hanging
        self.released = threading.Event()

    def put(self, name, file, write):
        if name in self.hanging:
            self.released.wait(20)
        if name in self.failing:
            raise StoreError("503 Slow Down")
        return super().put(name, file, write)


def trained(world: World, folder: str, rank: int, *options: str) -> tuple[list[str], list[str]]:
    """Train 12 steps with a checkpoint every 3, of which `rank`'s store fails at step 6; what was said, and what is
    complete."""
    said: list[str] = []
    trainer = Trainer(
        build(job("checkpoint.every=3", "checkpoint.keep=9", *options), world), pathlib.Path(folder), said.append
    )
    failing = ("step_00000006",) if world.rank == rank else ()
    trainer.saver.store = Faulty(pathlib.Path(folder) / "checkpoints", failing)
    trainer.run()
    trainer.close("finished")
    return [line for line in said if "checkpoint" in line], trainer.saver.store.complete()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_leaves_that_checkpoint_out(tmp_path, rank):
    found = gloo_ranks(2, functools.partial(trained, folder=str(tmp_path), rank=rank))
    for _, complete in found:
        assert complete == ["step_00000003", "step_00000009", "step_00000012"]
    assert found[1 - rank][0] == []
    assert found[rank][0] == [
        "checkpoint of step 6 is not written: 503 Slow Down; training goes on, the next one is tried"
    ]
    assert not list(tmp_path.glob("checkpoints/*.unfinished"))


def apart(world: World, folder: str) -> tuple[list[str], list[str]]:
    """Train each rank in a folder of its own."""
    said: list[str] = []
    own = pathlib.Path(folder) / str(world.rank)
    train(job("train.steps=6", "checkpoint.every=3"), world, own, said.append)
    return [line for line in said if "checkpoint" in line], LocalStore(own / "checkpoints").complete()


@pytest.mark.timeout(120)
def test_ranks_without_a_shared_disk_are_told_of_urls_once(tmp_path):
    (said, complete), (theirs, nothing) = gloo_ranks(2, functools.partial(apart, folder=str(tmp_path)))
    assert complete == ["step_00000003", "step_00000006"] and nothing == theirs == []
    assert len(said) == 1 and "lack rank 1's parts" in said[0] and "checkpoint.url" in said[0]


def hung(world: World, folder: str) -> tuple[float, list[str], list[str]]:
    """Save twice, of which rank 1's store does not answer for the first; seconds, what was said, what is complete."""
    said: list[str] = []
    rules = ("checkpoint.timeout=2", "cluster.collective_timeout=3")
    state = build(job(*rules), world)
    hanging = ("step_00000001",) if world.rank == 1 else ()
    store = Faulty(pathlib.Path(folder), hanging=hanging)
    saver = Saver(store, job(*rules), world, state.update.assent, said.append)
    began = time.monotonic()
    for step in (1, 2):
        saver.save(capture(state), step)
    saver.finish()
    took = time.monotonic() - began
    store.released.set()
    return took, said, store.complete()


@pytest.mark.timeout(120)
def test_a_store_that_does_not_answer_holds_nobody_up_for_long(tmp_path):
    (_, said, complete), (took, theirs, _) = gloo_ranks(2, functools.partial(hung, folder=str(tmp_path)))
    assert said == [] and complete == []
    assert took < 12
    assert any("checkpoint of step 1 is not written: it takes longer than 2 s" in line for line in theirs)
    assert any("checkpoint of step 2 is not written: the one before is still being written" in line for line in theirs)


def test_an_error_that_nobody_foresaw_is_said_too(tmp_path, monkeypatch):
    def strange(name, file, write):
        raise ValueError("strange")

    said: list[str] = []
    state = build(job(), World())
    saver = Saver(LocalStore(tmp_path), job(), World(), state.update.assent, said.append)
    monkeypatch.setattr(saver.store, "put", strange)
    saver.save(capture(state), 1)
    saver.finish()
    assert len(said) == 1 and said[0].startswith("checkpoint of step 1 is not written: ValueError: strange; training")
    assert saver.store.complete() == saver.store.unfinished() == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_pauses_checkpoints_and_rows_and_ends_nothing(small_disk):
    """The disk fills up before the checkpoint of step 6 and has room again after that of step 12."""
    said: list[str] = []
    options = ("train.steps=18", "checkpoint.every=3", "checkpoint.keep=9", "log.every=1", "masks=null")
    trainer = Trainer(build(job(*options), World()), small_disk / "run", said.append)
    original = trainer._conclude

    def conclude(report):
        step = trainer.state.step
        trainer.saver._done_within(20)
        if step == 6:
            with (small_disk / "hog").open("wb", buffering=0) as hog:
                fill(hog)
        if step == 13:
            (small_disk / "hog").unlink()
        original(report)

    trainer._conclude = conclude
    result = trainer.run()
    trainer.close("finished")
    assert result["steps"] == 18
    store = trainer.saver.store
    assert store.complete() == ["step_00000003", "step_00000015", "step_00000018"]
    assert store.unfinished() == []
    assert [problem(store, name) for name in store.complete()] == ["", "", ""]
    lost = [line for line in said if "is not written" in line]
    assert len(lost) == 3 and all("No space left" in line for line in lost)
    assert [row["train/step"] for row in read(small_disk / "run/metrics.jsonl")] == list(range(1, 19))
    assert sum("metrics.jsonl cannot be written now and is tried again" in line for line in said) == 1
    again: list[str] = []
    train(job(*options, "train.steps=19"), World(), small_disk / "run", again.append)
    assert "resumed from step_00000018" in again


def test_a_run_whose_last_checkpoint_cannot_be_written_is_not_finished(small_disk):
    """It has failed, and goes on from the checkpoint before once there is room."""
    options = ("train.steps=9", "checkpoint.every=3", "checkpoint.keep=9", "masks=null")
    said: list[str] = []
    trainer = Trainer(build(job(*options), World()), small_disk / "run", said.append)
    original = trainer._conclude

    def conclude(report):
        trainer.saver._done_within(20)
        if trainer.state.step == 9:  # the one of step 6 is complete by now
            with (small_disk / "hog").open("wb", buffering=0) as hog:
                fill(hog)
        original(report)

    trainer._conclude = conclude
    with pytest.raises(Unsaved, match="last checkpoint, of step 9, cannot be written"):
        trainer.run()
    trainer.close("failed")
    assert sum(line.startswith("checkpoint of step 9 is not ") and "next one" not in line for line in said) == 2
    assert trainer.saver.store.complete() == ["step_00000003", "step_00000006"]
    (small_disk / "hog").unlink()
    again: list[str] = []
    result = train(job(*options), World(), small_disk / "run", again.append)
    assert "resumed from step_00000006" in again and result["steps"] == 9
    assert trainer.saver.store.complete()[-1] == "step_00000009"


def fill(hog) -> None:
    """Write until there is no room for a byte."""
    size = 4096
    while size:
        try:
            os.posix_fallocate(hog.fileno(), os.fstat(hog.fileno()).st_size, size)
        except OSError:
            size //= 2


def test_state_holds_the_job(tmp_path):
    train(job("train.steps=2"), World(), tmp_path, lambda line: None)
    saved = json.loads((tmp_path / "checkpoints/step_00000002/job.json").read_text())
    assert saved["train"]["steps"] == 2


def last_one_lost(world: World, folder: str) -> tuple[bool, list[str]]:
    """Go on, as a group does whose last one ended while it wrote the last checkpoint; was it lacking, and what is
    complete at the end."""
    what, place = job("checkpoint.every=4", "checkpoint.keep=9"), pathlib.Path(folder)
    former = Trainer(build(what, world), place, lambda line: None)
    former.run()
    former.close("finished")
    if world.rank == 0:
        done = place / "checkpoints" / name_of(12)
        (done / "COMPLETE").unlink()
        done.rename(done.with_suffix(".unfinished"))
    world.transport.barrier()
    state = build(what, world)
    restore(state, capture(former.state).copied())
    trainer = Trainer(state, place, lambda line: None)
    trainer.recorded = 12
    lacking = trainer.saver.lacks(12)
    trainer.run(resumes=False)
    trainer.close("finished")
    return lacking, trainer.saver.store.complete()


@pytest.mark.timeout(120)
def test_a_last_checkpoint_that_went_with_a_group_is_written_by_the_next(tmp_path):
    everything = [name_of(step) for step in (4, 8, 12)]
    found = gloo_ranks(2, functools.partial(last_one_lost, folder=str(tmp_path)))
    assert found == [(True, everything)] * 2
    assert problem(LocalStore(tmp_path / "checkpoints"), name_of(12)) == ""
    assert not list((tmp_path / "checkpoints").glob("*.unfinished"))
