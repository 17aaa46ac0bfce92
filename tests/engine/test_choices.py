"""What the planner decides is told, written, saved, and taken up again."""

import json
import os
import pathlib

import pytest
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.choices import Choices
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.gradient.cost import Network
from sparsetrain.gradient.decision import Candidate, Decision

AUTO = ("exchange.regime=auto", "exchange.allow=[packed]", "train.steps=24", "checkpoint.every=4", "checkpoint.keep=9")


def decision(exchange: int) -> Decision:
    way = Candidate(name="dense", settings=(), lossless=True)
    network = Network(latency_s=1e-4, reduce_rate=1e7, gather_rate=1e7)
    return Decision(
        exchange=exchange, epoch=0, network=network, compute_s=0.1, candidates=(way,), chosen=way, why="because"
    )


def exchanges(path: pathlib.Path) -> list[int]:
    return [row["exchange"] for row in json.loads(path.read_text())["decisions"]]


def test_every_decision_is_told_once_and_all_are_written(tmp_path):
    path, said = tmp_path / "regimes.json", []
    choices = Choices(path, since=0)
    choices.tell([], said.append)
    assert not path.exists()
    choices.tell([decision(4)], said.append)
    choices.tell([decision(4), decision(30)], said.append)
    choices.tell([decision(4), decision(30)], said.append)
    assert [line.partition(":")[0] for line in said] == ["exchange 4", "exchange 30"]
    assert exchanges(path) == [4, 30]


def test_a_file_that_cannot_be_written_does_not_end_the_training(tmp_path):
    path, said = tmp_path / "regimes.json", []
    path.mkdir()
    Choices(path, since=3).tell([decision(4)], said.append)
    assert said[-1] == "regimes.json: not written: Is a directory"
    assert [each.name for each in tmp_path.iterdir()] == ["regimes.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"decisions": 3}', '{"decisions": ' + "[" * 200_000])
def test_a_file_of_somebody_else_is_as_none(tmp_path, text):
    path = tmp_path / "regimes.json"
    path.write_text(text)
    Choices(path, since=20).tell([decision(25)], lambda line: None)
    assert exchanges(path) == [25]


def test_a_pipe_in_its_place_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "regimes.json")
    assert Choices(tmp_path / "regimes.json", since=20).earlier == []


def test_an_attempt_keeps_what_led_to_its_checkpoint(tmp_path):
    path = tmp_path / "regimes.json"
    Choices(path, since=0).tell([decision(4), decision(30)], lambda line: None)
    Choices(path, since=20).tell([decision(25)], lambda line: None)
    assert exchanges(path) == [4, 25]
    Choices(path, since=0).tell([decision(5)], lambda line: None)
    assert exchanges(path) == [5]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"decisions": [1]}', '{"decisions": [{"exchange": "4"}]}'])
def test_a_damaged_file_is_written_anew(tmp_path, text):
    path = tmp_path / "regimes.json"
    path.write_text(text)
    Choices(path, since=9).tell([decision(10)], lambda line: None)
    assert exchanges(path) == [10]


def trainer(folder: pathlib.Path) -> tuple[Trainer, list[str]]:
    said: list[str] = []
    return Trainer(build(job(*AUTO), World()), folder, said.append), said


def test_a_killed_run_takes_up_its_choice(tmp_path):
    first, said = trainer(tmp_path)
    run_and_die(first, 14)
    first.recorder.close("failed")
    assert any(line.startswith("exchange ") and ": packed, " in line for line in said)
    saved = json.loads((checkpoint.complete(tmp_path / "checkpoints")[-1] / "state.json").read_text())
    assert saved["regimes"] == ["packed"] * len(first.state.exchange.channels)
    second, said = trainer(tmp_path)
    second.run()
    second.recorder.close("finished")
    planner = second.state.exchange.planner
    assert planner is not None and planner.begun and planner.count == 24
    assert "resumed from step_00000012" in said
    assert exchanges(tmp_path / "regimes.json")[0] < 14  # of the first attempt
