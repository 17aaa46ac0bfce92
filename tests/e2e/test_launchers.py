"""The scripts in launchers/ do what they say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import mpi_ranks
import pytest
from commands import REPOSITORY, Desk

from sparsetrain.worker.notice import AGAIN

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
needs_mpi = pytest.mark.skipif(bool(mpi_ranks.missing()), reason=mpi_ranks.missing())


def launch(
    desk: Desk, script: str, *arguments: str, seconds: float = 100, **variables: str
) -> subprocess.CompletedProcess[str]:
    env = desk.env()
    env["PATH"] = f"{pathlib.Path(sys.executable).parent}:{env['PATH']}"
    command = ["sh", str(REPOSITORY / "launchers" / script), *arguments]
    return subprocess.run(
        command, cwd=desk.folder, env=env | variables, capture_output=True, text=True, timeout=seconds
    )


def test_local_passes_job_and_settings_on(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    done = launch(desk, "local.sh", "job.yaml", "cluster.workers=3", "--dry-run")
    assert (done.returncode, done.stdout.split("\n")[0]) == (
        0,
        "tiny: 3 worker(s) of 1 CPU by ray on this machine, PACK",
    )
    assert not (tmp_path / "runs").exists()
    shutil.rmtree(desk.temporary)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_have_no_traps() -> None:
    scripts = [*(path for path in (REPOSITORY / "launchers").iterdir() if path.suffix != ".md"), REPOSITORY / ".ci/run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_torchrun_starts_as_many_ranks_as_it_is_told(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    done = launch(desk, "torchrun.sh", "job.yaml", "train.steps=4", WORKERS="3")
    assert done.returncode == 0, done.stderr
    assert desk.run_json("tiny")["status"] == "finished"
    assert "cluster:\n  workers: 3\n" in (tmp_path / "runs/tiny/job.yaml").read_text()
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@pytest.mark.timeout(240)
@needs_deepspeed
def test_deepspeed_starts_as_many_ranks_as_it_is_told(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    done = launch(desk, "deepspeed.sh", "job.yaml", "train.steps=4", WORKERS="3")
    assert done.returncode == 0, done.stderr
    assert "cluster:\n  workers: 3\n" in (tmp_path / "runs/tiny/job.yaml").read_text()
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@needs_mpi
def test_mpiexec_and_torchrun_train_alike_over_mpi_and_over_gloo(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    settings = ("train.steps=12", "train.evaluate_every=3", "exchange.regime=sparse")
    losses = {}
    for name, script, more in (
        ("mpi", "mpi.sh", ("cluster.transport=mpi",)),
        ("gloo", "mpi.sh", ()),
        ("torchrun", "torchrun.sh", ()),
    ):
        done = launch(desk, script, "job.yaml", f"name={name}", *settings, *more, **mpi_ranks.LOOPBACK)
        assert done.returncode == 0, done.stderr
        assert ("of 2 on" in done.stdout, ": MPI" in done.stdout) == (True, name == "mpi"), done.stdout
        rows = [json.loads(line) for line in (tmp_path / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["eval/loss"] for row in rows if "eval/loss" in row]
        assert json.loads((tmp_path / f"runs/{name}/launch.json").read_text())["launcher"] == script.removesuffix(".sh")
    assert len(losses["mpi"]) == 4 and losses["mpi"] == losses["gloo"] == losses["torchrun"]
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("transport", ["torch", "mpi"])
def test_a_rank_that_fails_under_mpiexec_ends_the_job_and_says_why(tmp_path: pathlib.Path, transport: str) -> None:
    desk = Desk(tmp_path)
    began = time.monotonic()
    more = (f"cluster.transport={transport}", "model.name=slowly:Boom")
    done = launch(desk, "mpi.sh", "job.yaml", *more, **mpi_ranks.LOOPBACK)
    assert done.returncode != 0
    assert "rank 1 on" in done.stderr and "failed: ValueError: boom in step 3" in done.stderr
    assert "Traceback" in done.stderr
    assert time.monotonic() - began < 60
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


by_each = pytest.mark.parametrize(
    "name",
    ["local", "torchrun", pytest.param("mpi", marks=needs_mpi), pytest.param("deepspeed", marks=needs_deepspeed)],
)


@pytest.mark.slow
@by_each
def test_a_mistake_that_only_ranks_find_is_one_under_every_launcher(tmp_path: pathlib.Path, name: str) -> None:
    desk = Desk(tmp_path)
    code, _, err = desk.call("sparsetrain", "launch", "job.yaml", "--on", name, "data.path=none.txt")
    assert code == 2 and "data.path: no file matches 'none.txt'" in err
    assert desk.run_json("tiny")["cause"] == "data.path: no file matches 'none.txt'"
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@by_each
def test_a_rank_that_fails_ends_the_job_of_every_launcher_soon(tmp_path: pathlib.Path, name: str) -> None:
    desk = Desk(tmp_path)
    code, out, err = desk.call("sparsetrain", "launch", "job.yaml", "--on", name, "model.name=slowly:Boom")
    at = re.search(r"ValueError: boom in step 3 at ([0-9.]+)", out + err)
    assert at is not None and time.time() - float(at[1]) < 30, out + err
    assert code == 1 and "Traceback" in err and re.search(r"rank 1 on \S+ .*failed|rank 1 .*ValueError", err), err
    assert desk.run_json("tiny")["status"] == "failed" and "rank 1" in desk.run_json("tiny")["cause"]
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@by_each
def test_ctrl_c_ends_the_job_of_every_launcher_and_leaves_nothing(tmp_path: pathlib.Path, name: str) -> None:
    desk = Desk(tmp_path)
    slow = ("model.name=slowly:Slow", "train.steps=1000")
    process = desk.start("sparsetrain", "launch", "job.yaml", "--on", name, *slow)
    desk.wait_for_rows("tiny", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert desk.run_json("tiny")["status"] == "interrupted"
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@pytest.mark.timeout(240)
@by_each
def test_a_run_of_every_launcher_ends_in_time_and_goes_on(tmp_path: pathlib.Path, name: str) -> None:
    desk = Desk(tmp_path)
    job = ("sparsetrain", "launch", "job.yaml", "--on", name, "model.name=slowly:Slow", "cluster.interface=lo")
    long = (*job, "train.steps=400", "cluster.time_limit=15")
    code, out, err = desk.call(*long, "--dry-run")
    assert (code, "  interface  lo\n  time limit  15 s" in out) == (0, True), out + err
    began = time.monotonic()
    code, out, err = desk.call(*long, timeout=100)
    assert code == AGAIN and time.monotonic() - began < 60, out + err
    assert "rank 0 of 2 on " in out and ": gloo over lo" in out
    told = re.search(r"tiny: saved at step (\d+), since cluster.time_limit \(15 s\) came; the same", out)
    assert told is not None, out + err
    run = desk.run_json("tiny")
    assert (run["status"], run["cause"]) == ("interrupted", "cluster.time_limit (15 s)")
    step = int(told[1])
    code, out, err = desk.call(*job, f"train.steps={step + 2}", timeout=100)
    assert code == 0 and f"resumed from step_{step:08d}" in out, out + err
    assert desk.run_json("tiny")["result"]["steps"] == step + 2
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.skipif(not any(importlib.metadata.distributions(name="mpich")), reason="mpi4py may be another MPI's")
@needs_mpi
def test_an_mpiexec_and_an_mpi4py_of_two_mpis_are_one_line(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mpiexec").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    (tmp_path / "bin/mpiexec").chmod(0o755)
    env = {**desk.env(), "PATH": f"{tmp_path}/bin:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin"}
    script = ["sh", str(REPOSITORY / "launchers/mpi.sh"), "job.yaml"]
    done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("mpi.sh: mpiexec is of "), done.stderr
    assert done.stderr.count("\n") == 1
    shutil.rmtree(desk.temporary)


@needs_mpi
def test_a_mistake_in_the_job_is_one_line_under_mpiexec(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    done = launch(desk, "mpi.sh", "job.yaml", "cluster.transprt=mpi", **mpi_ranks.LOOPBACK)
    assert done.returncode == 2
    assert done.stderr.count("cluster.transprt: unknown") == 1 and "did you mean 'transport'" in done.stderr
