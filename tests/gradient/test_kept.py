"""What is kept of a calibration: read back as it was, never trusted, and in nobody's way."""

import functools
import json
import os
import pathlib

import pytest
import torch

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient import automatic
from sparsetrain.gradient.cost import Network
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.gradient.kept import Calibration, Kept
from sparsetrain.gradient.stages import Costs

NETWORK = Network(latency_s=1e-4, reduce_rate=2e7, gather_rate=1e7)
KNOWN = [("settings", 0.5, Costs(1e-9, 2e-9))]


def test_what_was_written_is_read(tmp_path):
    kept = Kept(tmp_path / "new", World())
    assert kept.read() is None
    kept.write(Calibration.of(NETWORK, KNOWN))
    found = Kept(tmp_path / "new", World()).read()
    assert found is not None and found.network == NETWORK and found.known == KNOWN
    assert [each.name for each in kept.path.parent.iterdir()] == [kept.path.name]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": 2, "latency_s": 0, "reduce_rate": 1, "gather_rate": 1, "stages": []}',
        b'{"version": 1, "latency_s": 0, "reduce_rate": 1, "gather_rate": 0, "stages": []}',
        b'{"version": 1, "latency_s": NaN, "reduce_rate": 1, "gather_rate": 1, "stages": []}',
        b'{"version": 1, "latency_s": 0, "reduce_rate": 1, "gather_rate": 1, "stages": [], "more": 1}',
        b'{"version": 1, "latency_s": 0, "reduce_rate": 1e6, "gather_rate": 1e6, "stages": [{"settings": {"a": "b"}}]}',
        b'{"version": 1, "latency_s": 1e5, "reduce_rate": 1e6, "gather_rate": 1e6, "stages": []}',
        b'{"version": 1, "latency_s": 0, "reduce_rate": 1e6, "gather_rate": 1e-300, "stages": []}',
    ],
)
def test_another_file_is_as_none(tmp_path, text):
    kept = Kept(tmp_path, World())
    kept.path.write_bytes(text)
    assert kept.read() is None


def test_a_pipe_in_its_place_keeps_nobody_waiting(tmp_path):
    kept = Kept(tmp_path, World())
    os.mkfifo(kept.path)
    assert kept.read() is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "folder", World())
    kept.write(Calibration.of(NETWORK, KNOWN))
    assert kept.read() is None


def test_other_nodes_have_another_file(tmp_path):
    here, there = Kept(tmp_path, World(node="a")).path, Kept(tmp_path, World(node="b")).path
    assert here != there and here == Kept(tmp_path, World(node="a")).path


def one_run(world: World, folder: pathlib.Path) -> None:
    config = adapter(Exchange).validate_python({"regime": "auto", "rank": 1, "allow": ["dense", "sparse"]})
    exchange = GradientExchange(config, {"a": (64, 64)}, world, 10, calibrations=folder)
    for step in range(10):
        assert exchange.aggregate({"a": torch.full((64, 64), 1.0 + step)}) is not None
    exchange.close()


@pytest.mark.timeout(60)
def test_a_second_run_measures_nothing_again_unless_the_links_are_others(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(automatic, "measure_network", lambda transport: measured.append(transport.rank) or NETWORK)
    monkeypatch.setattr(automatic, "probe", lambda transport, before: before)
    run = functools.partial(one_run, folder=tmp_path)
    Simulation(2).run(run)
    assert sorted(measured) == [0, 1]
    (file,) = tmp_path.iterdir()
    before = json.loads(file.read_text())
    assert {json.loads(stage["settings"])["regime"] for stage in before["stages"]} == {"dense", "sparse"}
    Simulation(2).run(run)
    assert len(measured) == 2 and json.loads(file.read_text()) == before

    other = Network(latency_s=1e-4, reduce_rate=2e8, gather_rate=1e8)
    monkeypatch.setattr(automatic, "probe", lambda transport, before: other)
    Simulation(2).run(run)
    assert len(measured) == 4
