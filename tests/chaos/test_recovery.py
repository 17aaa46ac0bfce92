"""One run on Ray through everything that can happen to workers, and what a run does when none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import Desk

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
SLOW = ("sparsetrain", "run", "job.yaml", "model.name=slowly:Slow", "log.every=1", "train.evaluate_every=50")


def workers(desk: Desk) -> list[int]:
    """Return the process ids of the present group, in rank order."""
    placed = json.loads((desk.folder / "runs/tiny/launch.json").read_text())["placed"]
    return [each["pid"] for each in placed]


def rows(desk: Desk) -> int:
    path = desk.folder / "runs/tiny/metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def wait(desk: Desk, process: subprocess.Popen[str], more: int) -> None:
    """Return when so many more steps are recorded."""
    wanted, deadline = rows(desk) + more, time.monotonic() + 60
    while rows(desk) < wanted:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finished(desk: Desk, process: subprocess.Popen[str], steps: int) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    told = desk.run_json("tiny")
    assert (told["status"], told["result"]["steps"], rows(desk)) == ("finished", steps, steps)
    assert desk.left() == {} and not list(desk.temporary.glob("st-*"))
    return told


def test_one_run_through_everything(desk: Desk) -> None:
    """A killed worker, a machine that announces its end, one that stands still: the state stays in memory."""
    process = desk.start(*SLOW, "train.steps=44", "cluster.workers=3", "cluster.collective_timeout=5")
    desk.wait_for_rows("tiny", process)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        wait(desk, process, 3)
        os.kill(workers(desk)[1], number)
        wait(desk, process, 5)
    found = finished(desk, process, 44)["incidents"]
    assert [(len(each["lost"]), each["left"], each["workers"], each["from"]) for each in found] == [
        (1, 0, 3, "memory"),
        (0, 1, 3, "memory"),
        (1, 0, 3, "memory"),
    ]


def test_a_range_of_workers_goes_on_with_fewer_and_grows_again(desk: Desk) -> None:
    process = desk.start(*SLOW, "train.steps=60", "cluster.workers={min: 1, max: 2}")
    desk.wait_for_rows("tiny", process)
    while len(workers(desk)) < 2:  # a slow machine may begin with one
        wait(desk, process, 1)
    wait(desk, process, 3)
    os.kill(workers(desk)[0], signal.SIGKILL)
    found = finished(desk, process, 60)["incidents"]
    assert [(each["workers"], each["from"]) for each in found[-2:]] == [(1, "memory"), (2, "memory")]


def test_a_spare_takes_the_place_at_once(desk: Desk) -> None:
    process = desk.start(*SLOW, "train.steps=24", "recovery.spares=1")
    desk.wait_for_rows("tiny", process)
    wait(desk, process, 6)
    before = {pid for pid, line in desk.processes().items() if line.startswith("ray::RayWorker")}
    assert len(before) == 3
    os.kill(workers(desk)[0], signal.SIGKILL)
    (found,) = finished(desk, process, 24)["incidents"]
    assert (found["from"], found["workers"]) == ("memory", 2)
    assert set(workers(desk)) < before


def test_where_nobody_is_left_the_last_checkpoint_is(desk: Desk) -> None:
    process = desk.start(*SLOW, "train.steps=16", "checkpoint.every=2")
    saved = desk.folder / "runs/tiny/checkpoints/step_00000004/COMPLETE"
    while not saved.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    for pid in workers(desk):
        os.kill(pid, signal.SIGKILL)
    (found,) = finished(desk, process, 16)["incidents"]
    assert (found["from"], sorted(found["lost"])) == ("a checkpoint", [0, 1])
