"""A sweep on a real Ray cluster: what fails does not stop the rest, what was stopped goes on, what is done stays."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest
from commands import Desk

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
CLI = ("sparsetrain", "sweep", "job.yaml", "cluster.workers=1", "--name", "grid")


def test_a_run_that_fails_does_not_stop_the_others_and_a_second_call_runs_only_what_is_missing(desk: Desk) -> None:
    grid = (*CLI, "masks.method=set,rigl,synflow", "masks.every=2", "masks.sparsity=0.5", "--against", "dense")
    code, out, err = desk.call(*grid, "--json", timeout=120)
    assert code == 1  # synflow finds no way through layer norms
    assert "synflow-s0: masks.method: synflow finds no flow through this model" in err
    rows = json.loads(out)["rows"]
    assert [row.get("masks.method", row.get("masks")) for row in rows] == ["dense", "set", "rigl"]
    assert rows[1]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert 0.4 < rows[1]["training_operations"] < rows[2]["training_operations"] < 1.0
    folder = desk.folder / "runs" / "grid"
    assert {"sweep.json", "table.txt", "table.json", "set-s0", "dense-s0"} <= {path.name for path in folder.iterdir()}
    assert desk.left() == {}

    began = time.monotonic()
    code, out, err = desk.call(*CLI, "masks.method=set,rigl", "masks.every=2", "masks.sparsity=0.5")
    assert (code, "set" in out) == (0, True), err
    assert time.monotonic() - began < 15  # nothing was started
    code, _, err = desk.call(*CLI, "masks.method=set,rigl", "masks.every=4", "masks.sparsity=0.5")
    assert (code, err.count("\n"), "masks.every: is 4.0 here and 2.0" in err and "--name" in err) == (2, 1, True), err


def test_a_sweep_that_is_stopped_leaves_nothing_and_goes_on(desk: Desk) -> None:
    grid = (*CLI, "model.name=slowly:Slow", "optimizer.learning_rate=0.001,0.002", "train.evaluate_every=8")
    process = desk.start(*grid)
    desk.wait_for_rows("grid/0.001-s0", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "the same command goes on with it" in err) == (130, True), err
    assert desk.left() == {}
    code, out, err = desk.call(*grid, timeout=120)
    assert code == 0, err
    assert "[1/2] 0.001-s0" in out and "[2/2] 0.002-s0" in out
    assert desk.left() == {}
