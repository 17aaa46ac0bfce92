"""SIGUSR1 as the notice that the time is over: the run saves between two steps, and the same command goes on."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import Desk

from sparsetrain.worker.notice import AGAIN

pytestmark = pytest.mark.timeout(120)


def start(desk: Desk, *settings: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "sparsetrain.worker", "job.yaml", "cluster.workers=1", *settings]
    return subprocess.Popen(words, cwd=desk.folder, env=desk.env(), stdout=subprocess.PIPE, text=True)


def told(desk: Desk, name: str) -> dict:
    return json.loads((desk.folder / f"runs/{name}/run.json").read_text())


@pytest.mark.slow
def test_a_run_that_is_told_saves_and_goes_on_bit_for_bit(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    settings = ("model.name=slowly:Slow", "train.steps=8", "exchange.every=4", "exchange.density=0.2")
    process = start(desk, "name=told", *settings)
    desk.wait_for_rows("told", process)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == AGAIN and "told: saved at step 4, since SIGUSR1 came" in said  # where exchanges are
    assert (tmp_path / "runs/told/checkpoints/step_00000004/COMPLETE").exists()
    assert (told(desk, "told")["status"], told(desk, "told")["cause"]) == ("interrupted", "SIGUSR1")
    again, straight = start(desk, "name=told", *settings), start(desk, "name=straight", *settings)
    for each in (again, straight):
        each.communicate(timeout=60)
        assert each.returncode == 0
    digests = [told(desk, name)["result"]["weights_digest"] for name in ("told", "straight")]
    assert digests[0] == digests[1]
    shutil.rmtree(desk.temporary)


def test_a_notice_that_comes_while_packages_are_loaded_counts(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    process = start(desk, "name=early")
    time.sleep(1.0)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == AGAIN and "early: saved at step 1, since SIGUSR1 came" in said
    shutil.rmtree(desk.temporary)


def test_a_run_that_cannot_be_saved_has_failed(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "runs/full").mkdir(parents=True)
    (tmp_path / "runs/full/checkpoints").touch()  # where a folder would have to be
    process = start(desk, "name=full", "cluster.time_limit=0.1")
    said = process.communicate(timeout=60)[0]
    assert (
        process.returncode == 1
        and "full: ended at step 1, since cluster.time_limit (0.1 s) came, and could not" in said
    )
    assert told(desk, "full")["status"] == "failed"
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
def test_the_verb_run_takes_the_notice_as_a_rank_does(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    process = desk.start("sparsetrain", "run", "job.yaml", "model.name=slowly:Slow", "train.steps=1000")
    desk.wait_for_rows("tiny", process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == AGAIN and ", since SIGUSR1 came; the same command goes on there" in said
    assert told(desk, "tiny")["status"] == "interrupted"
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
