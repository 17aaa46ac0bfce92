"""Jobs in a real Slurm on hosts of their own: what launchers/slurm.sbatch does, and how such jobs end."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator

import pytest
import slurm as cluster
from commands import REPOSITORY, Desk
from test_same_losses import JOB
from test_same_losses import read as losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing()),
]
SCRIPTS = {
    "srun": str(REPOSITORY / "launchers/slurm.sbatch"),
    "torchrun": str(REPOSITORY / "launchers/slurm_torchrun.sbatch"),
}
SCRIPT = SCRIPTS["srun"]
STARTERS = {"srun": "slurm", "torchrun": "torchrun"}
by = pytest.mark.parametrize("way", SCRIPTS)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Generator[cluster.Slurm]:
    desk = Desk(tmp_path_factory.mktemp("slurm"))
    with cluster.slurm(desk, 2) as two:
        yield two
    assert desk.left() == {}


def submit(nodes: cluster.Slurm, name: str, *settings: str, script: str = SCRIPT) -> str:
    words = ("sbatch", "--parsable", f"--output={name}.out", script, "job.yaml", f"name={name}", *settings)
    code, said = nodes.call(*words)
    assert code == 0, said
    return said.strip()


def state(nodes: cluster.Slurm, job: str) -> str:
    """Return what the controller says of a job."""
    words = nodes.call("scontrol", "show", "job", job)[1].split()
    return next((word.removeprefix("JobState=") for word in words if word.startswith("JobState=")), "")


def ended(nodes: cluster.Slurm, name: str, job: str, seconds: float) -> str:
    """Return the state in which a job has ended."""
    output = nodes.desk.folder / f"{name}.out"
    cluster.wait(
        lambda: state(nodes, job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"),
        seconds,
        lambda: output.read_text() if output.exists() else "nothing printed",
    )
    return state(nodes, job)


def told(nodes: cluster.Slurm, name: str) -> dict[str, object]:
    path = nodes.desk.folder / f"runs/{name}/run.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def test_the_script_is_one_that_slurm_takes(nodes: cluster.Slurm) -> None:
    for script in SCRIPTS.values():
        code, said = nodes.call("sbatch", "--test-only", script, "job.yaml")
        assert code == 0 and "using 2 processors on nodes node[1-2]" in said


def test_jobs_train_on_two_hosts_as_torchrun_does_on_one(nodes: cluster.Slurm) -> None:
    folder = nodes.desk.folder
    for name, script in SCRIPTS.items():
        job = submit(nodes, f"by-{name}", *JOB, script=script)
        assert ended(nodes, f"by-{name}", job, 100) == "COMPLETED", (folder / f"by-{name}.out").read_text()
        assert "rank 0 of 2 on node1: gloo over eth0" in (folder / f"by-{name}.out").read_text()
        assert json.loads((folder / f"runs/by-{name}/launch.json").read_text())["launcher"] == STARTERS[name]
    torchrun = [
        "torchrun",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "sparsetrain.worker",
        "job.yaml",
        "name=torchrun",
        *JOB,
    ]
    code, said = nodes.call(*torchrun, seconds=100)
    assert code == 0, said
    assert len(losses(folder / "runs/torchrun")) == 50
    for name in SCRIPTS:
        assert losses(folder / f"runs/by-{name}") == losses(folder / "runs/torchrun")


@pytest.mark.timeout(400)  # three starts, one after another
@by
def test_a_job_whose_time_is_over_saves_queues_again_and_goes_on_bit_for_bit(nodes: cluster.Slurm, way: str) -> None:
    settings, again = ("train.steps=24", "model.name=slowly:Slow"), f"again-{way}"
    job = submit(nodes, again, *settings, script=SCRIPTS[way])
    metrics = nodes.desk.folder / f"runs/{again}/metrics.jsonl"
    cluster.wait(lambda: metrics.exists() and bool(metrics.read_text()), 60, lambda: "no row")
    assert nodes.call("scancel", "--signal=USR1", job)[0] == 0  # as --signal does
    cluster.wait(lambda: state(nodes, job) == "PENDING", 30, lambda: (nodes.desk.folder / f"{again}.out").read_text())
    said = (nodes.desk.folder / f"{again}.out").read_text()
    assert f"{again}: saved at step " in said and f"slurm: job {job} is requeued" in said
    assert told(nodes, again)["status"] == "interrupted"
    # Slurm waits two minutes before it starts a job again that has just run: it wants the nodes to be done with it.
    cluster.wait(lambda: nodes.states() == "idle idle" and not workers(nodes), 60, nodes.states)
    time.sleep(2)
    assert nodes.call("scontrol", "update", f"JobId={job}", "StartTime=now")[0] == 0
    assert ended(nodes, again, job, 120) == "COMPLETED", (nodes.desk.folder / f"{again}.out").read_text()
    assert told(nodes, again)["attempts"] == 2
    straight = submit(nodes, f"straight-{way}", *settings)
    assert ended(nodes, f"straight-{way}", straight, 100) == "COMPLETED"
    digests = [told(nodes, name)["result"]["weights_digest"] for name in (again, f"straight-{way}")]  # type: ignore[index]
    assert digests[0] == digests[1]


LIMIT = ("interrupted", "cluster.time_limit (12 s)")


@by
def test_a_job_that_is_over_its_own_limit_saves_and_does_not_queue_again(nodes: cluster.Slurm, way: str) -> None:
    name, how = f"limited-{way}", f"cluster.launcher.torchrun={str(way == 'torchrun').lower()}"
    code, said = limited(nodes, name, how)
    assert code == 75 and f"{name}: saved at step " in said and f"{LIMIT[1]} came" in said, said
    assert (told(nodes, name)["status"], told(nodes, name)["cause"]) == LIMIT
    assert "requeued" not in said and name not in nodes.call("squeue", "--format=%j")[1]


def limited(nodes: cluster.Slurm, name: str, *settings: str) -> tuple[int, str]:
    """Return exit code and output of a job with a limit of its own that is launched and followed."""
    job = ("launch", "job.yaml", "--on", "slurm", "cluster.launcher.nodes=2", f"name={name}", *settings)
    slow = ("model.name=slowly:Slow", "train.steps=1000", "cluster.time_limit=12", "--wait")
    return nodes.call("sparsetrain", *job, *slow, seconds=120)


@by
def test_a_rank_that_fails_ends_the_job_and_says_why(nodes: cluster.Slurm, way: str) -> None:
    job = ("job.yaml", f"name=boom-{way}", "model.name=slowly:Boom", "cluster.launcher.nodes=2")
    how = f"cluster.launcher.torchrun={str(way == 'torchrun').lower()}"
    code, said = nodes.call("sparsetrain", "launch", *job, how, "--on", "slurm", "--wait", seconds=90)
    assert code == 1 and "slurm: failed" in said, said
    assert "rank 1 on node2 failed: ValueError: boom in step 3" in said and "Traceback" in said
    assert "rank 1" in str(told(nodes, f"boom-{way}")["cause"])
    at = re.search(r"boom in step 3 at ([0-9.]+)", said)
    assert at is not None and time.time() - float(at[1]) < 30


def test_a_mistake_in_the_job_is_one_line(nodes: cluster.Slurm) -> None:
    job = submit(nodes, "wrong", "train.stepz=3")
    assert ended(nodes, "wrong", job, 60) == "FAILED"
    said = (nodes.desk.folder / "wrong.out").read_text()
    assert said.count("train.stepz: unknown") == 1 and "did you mean 'steps'" in said


@by
def test_scancel_leaves_nothing(nodes: cluster.Slurm, way: str) -> None:
    name = f"cancelled-{way}"
    job = submit(nodes, name, "model.name=slowly:Slow", "train.steps=1000", script=SCRIPTS[way])
    metrics = nodes.desk.folder / f"runs/{name}/metrics.jsonl"
    cluster.wait(lambda: metrics.exists() and bool(metrics.read_text()), 60, lambda: "no row")
    began = time.monotonic()
    assert nodes.call("scancel", job)[0] == 0
    assert ended(nodes, name, job, 40) == "CANCELLED"
    cluster.wait(lambda: not workers(nodes), 20, lambda: str(workers(nodes)))
    assert time.monotonic() - began < 30
    assert told(nodes, name)["status"] == "interrupted"


def test_a_job_is_launched_once_and_sigterm_cancels_the_one_that_is_followed(nodes: cluster.Slurm) -> None:
    settings = ("name=twice", "model.name=slowly:Slow", "train.steps=1000", "cluster.launcher.nodes=2")
    out, metrics = nodes.folder / "follow.txt", nodes.desk.folder / "runs/twice/metrics.jsonl"
    first = nodes.program(0, "sparsetrain", "launch", "job.yaml", *settings, "--on", "slurm", "--wait", to=out)
    cluster.wait(lambda: metrics.exists() and bool(metrics.read_text()), 60, out.read_text)
    code, said = nodes.call("sparsetrain", "launch", "job.yaml", *settings, "--on", "slurm")
    assert code == 2 and "name: twice is job " in said and "scancel" in said, said
    first.terminate()
    assert first.wait(30) == 130 and " is cancelled" in out.read_text()
    cluster.wait(lambda: not workers(nodes), 20, lambda: str(workers(nodes)))


def workers(nodes: cluster.Slurm) -> list[str]:
    return [line for line in nodes.desk.processes().values() if "sparsetrain.worker" in line]  # torchrun's, too
