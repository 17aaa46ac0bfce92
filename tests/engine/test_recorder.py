"""What a run leaves behind: spans of all ranks, tables and alerts, a profile."""

import functools
import json
import pathlib

import pytest
from ranks import gloo_ranks
from small import job

from sparsetrain.collective.world import World
from sparsetrain.engine import recorder
from sparsetrain.engine.state import build
from sparsetrain.engine.tables import histogram, notes
from sparsetrain.engine.trainer import Trainer, train
from sparsetrain.masks.agreement import MaskDisagreement
from sparsetrain.track.notes import Alert, Histogram, Table
from sparsetrain.track.trace import merge


def quiet(line: str) -> None:
    return


class Shown:
    """A sink that keeps what it is told."""

    def __init__(self):
        self.told = []

    def log(self, row):
        return

    def tell(self, step, found):
        self.told += [(step, note) for note in found]

    def close(self, status):
        self.told.append(status)


def traced(world: World, folder: pathlib.Path, *settings: str) -> list:
    """Train with a trace, and return what rank 0's sinks were told."""
    folder.mkdir(exist_ok=True)
    shown, usual = Shown(), recorder.sinks
    recorder.sinks = lambda *words: {**usual(*words), "shown": lambda: shown}
    try:
        small = job("log.trace=true", "log.tensorboard=true", *settings)
        trainer = Trainer(build(small, world), folder, quiet)
        trainer.recorder.shows = True
        trainer.run()
        trainer.close("finished")
    finally:
        recorder.sinks = usual
    return shown.told


def test_two_ranks_leave_one_trace_and_rank_0_has_the_tables(tmp_path):
    told, other = gloo_ranks(2, functools.partial(traced, folder=tmp_path))
    merged = merge(tmp_path)
    found = [event for event in merged.tree["traceEvents"] if event["ph"] == "X"]
    for rank in range(2):
        names = {event["name"] for event in found if event["pid"] == rank}
        assert names >= {
            "data", "forward_backward", "exchange", "select", "communicate", "collective", "optimizer", "update",
            "masks", "evaluation", "checkpoint", "record",
        }  # fmt: skip
        assert sum(event["name"] == "forward_backward" for event in found if event["pid"] == rank) == 12
    assert not merged.shifts and other == []
    tables = [(step, note) for step, note in told[:-1] if isinstance(note, Table)]
    assert {(step, table.name) for step, table in tables} == {
        (n, name) for n in (6, 12) for name in ("layers", "ranks")
    }
    ranks = next(table for _, table in tables if table.name == "ranks")
    assert [row[0] for row in ranks.rows] == [0, 1] and all(row[2] > 0 for row in ranks.rows)
    layers = next(table for _, table in tables if table.name == "layers")
    masked = [row for row in layers.rows if row[3] < 1.0]
    assert masked and all(row[6] is not None for row in masked)
    assert any(isinstance(note, Histogram) for _, note in told[:-1]) and told[-1] == "finished"


def test_a_run_that_goes_on_says_so_and_one_that_ends_says_why(tmp_path, monkeypatch):
    train(job("train.steps=6", "checkpoint.every=3"), World(), tmp_path, quiet)
    shown, usual = Shown(), recorder.sinks
    monkeypatch.setattr(recorder, "sinks", lambda *words: {**usual(*words), "shown": lambda: shown})
    small = job("train.steps=9", "checkpoint.every=3")
    trainer = Trainer(build(small, World()), tmp_path, quiet)

    def differ(step):
        raise MaskDisagreement("mask epoch 1: ranks [1] differ")

    trainer.state.masks.check = differ
    with pytest.raises(MaskDisagreement) as caught:
        trainer.run()
    trainer.recorder.failed(caught.value)
    alerts = [note for each in shown.told if each != "failed" for note in each[1:] if isinstance(note, Alert)]
    assert [(alert.kind, alert.level) for alert in alerts] == [("restart", "WARN"), ("mask mismatch", "ERROR")]
    assert shown.told[-1] == "failed"
    lines = [json.loads(line) for line in (tmp_path / "events.rank00000.jsonl").read_text().splitlines()]
    assert [line["alert"] for line in lines] == ["restart", "mask mismatch"]


def test_a_profile_is_taken_of_the_steps_that_the_job_names(tmp_path):
    said = []
    train(job("train.steps=6", "log.profile.begin=2", "log.profile.steps=2"), World(), tmp_path, said.append)
    assert any(line.startswith("profile: steps 3 to 4 in ") for line in said)
    tree = json.loads((tmp_path / "profile/rank00000.steps3-4.json").read_text())
    assert any("aten::" in event.get("name", "") for event in tree["traceEvents"])
    assert "aten::" in (tmp_path / "profile/rank00000.steps3-4.txt").read_text()


def test_without_being_asked_for_there_is_no_trace_and_no_profile(tmp_path):
    train(job("train.steps=3"), World(), tmp_path, quiet)
    assert not (tmp_path / "trace").exists() and not (tmp_path / "profile").exists()


def test_a_histogram_counts_every_finite_value():
    import torch

    found = histogram("x", [torch.tensor([0.0, 1.0, -1.0, float("nan")]), torch.zeros(5)])
    assert sum(found.counts) == 8 and len(found.edges) == len(found.counts) + 1
    assert notes(build(job(), World()))[0].name == "layers"
