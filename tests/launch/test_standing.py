"""`sparsetrain status` and `sparsetrain cancel`, on runs that go on here, in a queue, nowhere."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest
from commands import Desk

from sparsetrain.cli import main
from sparsetrain.config.load import parse, to_yaml
from sparsetrain.launch.cancel import _chief
from sparsetrain.launch.standing import standing
from sparsetrain.worker import record


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of a run that has come to step 6 of 8, says its run.json, and no more."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "runs/one"
    made.mkdir(parents=True)
    (made / "job.yaml").write_text(to_yaml(parse({"name": "one", "train": {"steps": 8}})))
    (made / "run.json").write_text('{"status": "running", "pid": 1}')
    (made / "metrics.jsonl").write_text('{"train/step": 6, "train/loss": 2.5}\n')
    return made


def test_a_run_that_nobody_holds_is_lost(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "status", "one")
    assert code == 0 and out.startswith("one: lost (its processes are gone") and "step 6 of 8, written " in out
    assert "loss 2.5000" in out
    code, out, _ = call(capsys, "cancel", "one")
    assert (code, out) == (0, "one: is not running (lost)\n")


def test_one_that_is_held_runs(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 17 on far-away")
        lock.flush()
        found = json.loads(call(capsys, "status", "one", "--json")[1])
        assert (found["state"], found["holder"], found["steps"]) == ("running", "process 17 on far-away", 8)
        code, _, err = call(capsys, "cancel", "one")
        assert code == 2 and err == "one: runs as process 17 on far-away; end it there: ssh far-away kill 17\n"
    assert standing(folder).state == "lost"


def test_a_process_that_does_not_hold_the_lock_is_let_be(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"process {bystander.pid} on {socket.gethostname()}")
            lock.flush()
            code, _, err = call(capsys, "cancel", "one")
        assert code == 2 and f"its lock names process {bystander.pid}, which does not hold it" in err
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_torchrun_is_told_in_a_ranks_place_and_a_script_of_that_name_is_not(tmp_path: pathlib.Path) -> None:
    (tmp_path / "torchrun").write_text(
        "import subprocess, sys\nwith subprocess.Popen(['sleep', '60']) as child: print(child.pid, flush=True)\n"
    )
    (tmp_path / "torchrun-wrapper.sh").write_text("sleep 60 & echo $!\nwait\n")
    for words, told in (
        ([sys.executable, "-u", str(tmp_path / "torchrun"), "--nnodes", "1"], True),
        (["bash", str(tmp_path / "torchrun-wrapper.sh")], False),
    ):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert _chief(child) == (parent.pid if told else child)
            os.kill(child, signal.SIGKILL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["launch.json", "lock"])
def test_a_pipe_in_the_folder_keeps_nobody_waiting(folder, capsys, name: str) -> None:
    os.mkfifo(folder / name)
    assert call(capsys, "status", "one")[1].startswith("one: lost")


def test_no_text_of_the_folder_reaches_the_terminal_as_it_is(folder, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.json").write_text(json.dumps({"status": "failed", "cause": "\x1b[2J\x1b]0;evil\x07\nline"}))
    out = call(capsys, "status", "one")[1]
    assert out.startswith("one: failed (\N{MIDDLE DOT}[2J") and "\x1b" not in out and "\x07" not in out


def test_how_it_ended_is_told(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.end(folder, "failed", "rank 1 on node2 failed: ValueError: boom")
    assert call(capsys, "status", "one")[1].startswith("one: failed (rank 1 on node2 failed: ValueError: boom)\n")
    code, _, err = call(capsys, "status", "on")
    assert code == 2 and err == "on: no such run; in runs/: one; did you mean 'one'?\n"


def test_a_job_in_a_queue_is_shown_and_cancelled(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder)  # a job that has not begun has written nothing
    (folder / "launch").mkdir(parents=True)
    (folder / "launch/job.yaml").write_text("name: one\n")
    (folder / "launch/slurm").write_text("17\n")
    for name, body in {
        "scontrol": "[ -e ended ] && s=CANCELLED || s=PENDING; "
        'printf "JobState=$s ExitCode=0:0\\n   StdOut=%s/17.out\\n" '
        f"'{folder}/launch'",
        "scancel": 'echo "$1" > ended',
    }.items():
        path = folder.parent.parent / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder.parent.parent}:{os.environ['PATH']}")
    assert call(capsys, "status", "one")[1].startswith("one: pending\n  slurm job 17; output ")
    code, out, _ = call(capsys, "cancel", "one")
    assert code == 0 and out.startswith("one: slurm job 17 has ended")
    assert pathlib.Path("ended").read_text() == "17\n"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ray", "torchrun"])
def test_a_run_on_this_machine_is_shown_and_ended(tmp_path: pathlib.Path, launcher: str) -> None:
    desk = Desk(tmp_path)
    job = ("job.yaml", "model.name=slowly:Slow", "train.steps=1000", "--on", launcher)
    process = desk.start("sparsetrain", "launch", *job)
    desk.wait_for_rows("tiny", process, 90)
    code, out, err = desk.call("sparsetrain", "status", "tiny", "--json")
    found = json.loads(out)
    assert code == 0 and found["state"] == "running" and found["row"]["train/step"] >= 2, err
    code, out, err = desk.call("sparsetrain", "cancel", "tiny")
    assert code == 0 and "has ended; `sparsetrain resume " in out, out + err
    process.communicate(timeout=30)
    assert process.returncode in (130, 1)
    assert desk.run_json("tiny")["status"] == "interrupted"
    assert desk.left(15) == {}
    shutil.rmtree(desk.temporary)
