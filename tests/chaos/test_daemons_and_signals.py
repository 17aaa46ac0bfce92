"""What an unkind world does to a run: it ends in bounded time, says why, and leaves nothing behind."""

from __future__ import annotations

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
LONG = ("sparsetrain", "run", "job.yaml", "model.name=slowly:Slow", "train.steps=1000")


def started(desk: Desk, *arguments: str) -> subprocess.Popen[str]:
    process = desk.start(*LONG, *arguments)
    desk.wait_for_rows("tiny", process)
    return process


def ended(process: subprocess.Popen[str], within: float) -> tuple[int, str]:
    began = time.monotonic()
    _, err = process.communicate(timeout=90)
    assert time.monotonic() - began < within, err
    return process.returncode, err


def found(desk: Desk, text: str) -> list[int]:
    return sorted(pid for pid, line in desk.processes().items() if text in line)


def test_a_rank_that_stands_still_is_named_and_the_run_ends(desk: Desk) -> None:
    process = started(desk, "cluster.collective_timeout=6", "recovery.crashes=0")
    workers = found(desk, "ray::RayWorker")
    os.kill(workers[1], signal.SIGSTOP)
    code, err = ended(process, within=40)
    assert code == 1
    # Whichever is noticed first: that it answers nothing, or that others wait for it.
    said = ("no sign of life for 6 s", "did not come: others waited for 6 s")
    assert any(f"process {workers[1]}) failed: {each}" in err for each in said)
    assert desk.run_json("tiny")["status"] == "failed"
    assert desk.left() == {}


def test_a_signal_to_the_whole_group_ends_everything(desk: Desk) -> None:
    process = started(desk)
    os.killpg(process.pid, signal.SIGTERM)
    code, err = ended(process, within=40)
    assert (code, "interrupted" in err) == (130, True)
    assert (desk.run_json("tiny")["status"], desk.run_json("tiny")["cause"]) == ("interrupted", "SIGTERM")
    assert desk.left() == {}
    assert not list(desk.temporary.glob("st-*"))


def test_a_lost_control_service_of_ray_costs_no_result_and_leaves_nothing(desk: Desk) -> None:
    process = desk.start(*LONG[:-1], "train.steps=24")
    desk.wait_for_rows("tiny", process)
    (service,) = found(desk, "gcs_server")
    os.kill(service, signal.SIGKILL)
    code, _ = ended(process, within=60)
    assert (code, desk.run_json("tiny")["status"]) in ((0, "finished"), (1, "failed"))
    assert desk.left() == {}
    assert not list(desk.temporary.glob("st-*"))


def test_a_name_is_trained_by_one_run_at_a_time(desk: Desk) -> None:
    process = started(desk)
    code, _, err = desk.call(*LONG)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("name: ") and f"is being trained by process {process.pid} on " in err
    os.kill(process.pid, signal.SIGINT)
    assert ended(process, within=40)[0] == 130
    assert desk.left() == {}


def test_under_torchrun_the_rank_that_fails_says_so_in_the_run_folder(desk: Desk) -> None:
    run_by = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sparsetrain.worker")
    code, _, err = desk.call(*run_by, "job.yaml", "model.name=slowly:Late", "train.steps=1000")
    assert code == 1 and "boom in step 6" in err
    assert desk.run_json("tiny")["status"] == "failed"
    assert "rank 1 on " in desk.run_json("tiny")["cause"] and "boom in step 6" in desk.run_json("tiny")["cause"]
    assert desk.left() == {}
