"""Whole runs on a Ray cluster of this machine: the good end and every bad one."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

import pytest
from commands import Desk

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
CLI = ("sparsetrain", "run", "job.yaml")


def test_two_workers_end_well_and_torchrun_gives_the_same_losses(desk: Desk) -> None:
    code, out, err = desk.call(*CLI, "--json")
    assert code == 0, err
    (run,) = json.loads(out)["runs"]
    assert (run["status"], run["result"]["steps"]) == ("finished", 8)
    assert desk.left() == {}
    assert not list(desk.temporary.glob("st-*"))
    folder = desk.folder / "runs" / "tiny"
    assert json.loads((folder / "launch.json").read_text())["launcher"] == "ray"
    assert {"job.yaml", "env.json", "run.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}

    run_by = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sparsetrain.worker")
    code, out, err = desk.call(*run_by, "job.yaml", "name=other")
    assert code == 0, err
    assert "step     8" in out
    assert desk.losses("other") == desk.losses("tiny")
    assert desk.run_json("other")["result"]["weights_digest"] == run["result"]["weights_digest"]

    code, out, _ = desk.call(*CLI)
    assert (code, "already finished" in out) == (0, True)
    code, _, err = desk.call(*CLI, "train.batch_size=2")
    assert (code, err.count("\n"), err.startswith("train.batch_size: is 2 here and 4")) == (2, 1, True)


def test_an_exception_on_one_rank_ends_the_run_and_is_told_once(desk: Desk) -> None:
    code, out, err = desk.call(*CLI, "model.name=slowly:Boom")
    assert code == 1
    assert f"rank 1 on {socket.gethostname()} (node " in err
    assert "failed: ValueError: boom in step 3" in err
    assert (out + err).count("Traceback (most recent call last)") == 1
    assert desk.run_json("tiny")["status"] == "failed"
    assert "boom in step 3" in desk.run_json("tiny")["cause"]
    assert desk.left() == {}


def test_a_killed_worker_ends_the_run_within_seconds(desk: Desk) -> None:
    process = desk.start(*CLI, "model.name=slowly:Slow", "train.steps=1000", "recovery.crashes=0")
    desk.wait_for_rows("tiny", process)
    workers = sorted(pid for pid, line in desk.processes().items() if line.startswith("ray::RayWorker"))
    assert len(workers) == 2
    began = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - began < 20
    assert f"process {workers[1]}) failed: ActorDiedError: its process is gone" in err
    assert "[1 lost, recovery.crashes allows 0]" in err
    assert (out + err).count(f"on {socket.gethostname()} (node ") == 1
    assert "Traceback" not in out + err
    assert desk.left() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process(desk: Desk, number: signal.Signals) -> None:
    process = desk.start(*CLI, "model.name=slowly:Slow", "train.steps=1000")
    desk.wait_for_rows("tiny", process)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert desk.run_json("tiny")["status"] == "interrupted"
    assert desk.left() == {}


def test_what_this_machine_cannot_give_is_said_in_one_line(desk: Desk) -> None:
    code, _, err = desk.call(*CLI, "cluster.gpus_per_worker=99")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("cluster: asked for 2 x (1 CPU, 99 GPU), PACK; the cluster has ")
    assert desk.left() == {}


def test_killed_and_resumed_is_straight_bit_for_bit(desk: Desk) -> None:
    """Masks change after steps 4 and 8; rank 1 is killed somewhere behind the checkpoint of step 4."""
    wanted = (
        *CLI,
        *("model.name=slowly:Slow", "train.steps=12", "checkpoint.every=2", "log.every=1", "recovery.crashes=0"),
        "masks={method: rigl, sparsity: 0.8, every: 4, end: 1.0}",
    )
    code, _, err = desk.call(*wanted, "name=straight")
    assert code == 0, err
    process = desk.start(*wanted)
    saved = desk.folder / "runs/tiny/checkpoints/step_00000004/COMPLETE"
    while not saved.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(max(pid for pid, line in desk.processes().items() if line.startswith("ray::RayWorker")), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    code, out, err = desk.call("sparsetrain", "resume", "tiny")
    assert (code, "resumed from step_0000" in out) == (0, True), err
    straight, resumed = desk.run_json("straight")["result"], desk.run_json("tiny")["result"]
    assert (resumed["steps"], resumed["weights_digest"]) == (12, straight["weights_digest"])
    assert resumed["eval/loss"] == straight["eval/loss"]
    assert desk.losses("tiny") == desk.losses("straight")
    assert desk.left() == {}
