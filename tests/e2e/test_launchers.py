"""The scripts in launchers/ do what they say."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest
from commands import REPOSITORY, Desk

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def launch(desk: Desk, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = desk.env()
    env["PATH"] = f"{pathlib.Path(sys.executable).parent}:{env['PATH']}"
    command = ["sh", str(REPOSITORY / "launchers" / script), *arguments]
    return subprocess.run(command, cwd=desk.folder, env=env | variables, capture_output=True, text=True, timeout=100)


def test_local_passes_job_and_settings_on(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    done = launch(desk, "local.sh", "job.yaml", "cluster.workers=3", "--dry-run")
    assert (done.returncode, done.stdout.split("\n")[0]) == (
        0,
        "tiny: 3 worker(s) of 1 CPU by ray on this machine, PACK",
    )
    assert not (tmp_path / "runs").exists()
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
def test_torchrun_starts_as_many_ranks_as_it_is_told(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    done = launch(desk, "torchrun.sh", "job.yaml", "train.steps=4", WORKERS="3")
    assert done.returncode == 0, done.stderr
    assert desk.run_json("tiny")["status"] == "finished"
    assert "cluster:\n  workers: 3\n" in (tmp_path / "runs/tiny/job.yaml").read_text()
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
