"""Ray inside a real Slurm allocation: launchers/slurm_ray.sbatch, its agents, and how such jobs end."""

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
from test_slurm import LIMIT, ended, limited, state, told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing()),
]
SCRIPT = str(REPOSITORY / "launchers" / "slurm_ray.sbatch")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Generator[cluster.Slurm]:
    desk = Desk(tmp_path_factory.mktemp("slurm-ray"))
    with cluster.slurm(desk, 2, kill_wait=30) as two:
        yield two
    assert desk.left() == {}


def submit(nodes: cluster.Slurm, name: str, *settings: str) -> str:
    words = ("sbatch", "--parsable", f"--output={name}.out", SCRIPT, "job.yaml", f"name={name}")
    code, said = nodes.call(*words, "cluster.strategy=SPREAD", *settings)
    assert code == 0, said
    return said.strip()


def nothing_left(nodes: cluster.Slurm, seconds: float = 20) -> None:
    """Return when no process of Ray or of ours is there; files of Ray's are gone, too."""

    def found() -> list[str]:
        return [line for line in nodes.desk.processes().values() if "ray" in line or "sparsetrain" in line]

    cluster.wait(lambda: not found(), seconds, lambda: "\n".join(found()))
    assert not list(nodes.desk.temporary.glob("st-*"))


def test_ray_trains_on_two_hosts_as_srun_does(nodes: cluster.Slurm) -> None:
    folder = nodes.desk.folder
    job = submit(nodes, "ray", *JOB)
    assert ended(nodes, "ray", job, 150) == "COMPLETED", (folder / "ray.out").read_text()
    said = (folder / "ray.out").read_text()
    assert "ray: 2 node(s) after " in said and "node1, node2" in said
    nothing_left(nodes)
    words = ("sbatch", "--parsable", "--output=srun.out", str(REPOSITORY / "launchers/slurm.sbatch"), "job.yaml")
    srun = nodes.call(*words, "name=srun", *JOB)[1].strip()
    assert ended(nodes, "srun", srun, 100) == "COMPLETED", (folder / "srun.out").read_text()
    assert losses(folder / "runs/ray") == losses(folder / "runs/srun") and len(losses(folder / "runs/ray")) == 50
    placed = json.loads((folder / "runs/ray/launch.json").read_text())["placed"]
    assert [row["host"] for row in placed] == ["node1", "node2"]


def test_a_rank_that_fails_ends_the_job_and_says_why(nodes: cluster.Slurm) -> None:
    job = ("job.yaml", "name=boom", "model.name=slowly:Boom", "cluster.strategy=SPREAD")
    slurm = ("cluster.launcher.nodes=2", "cluster.launcher.ray=true")
    code, said = nodes.call("sparsetrain", "launch", *job, *slurm, "--on", "slurm", "--wait", seconds=120)
    assert code == 1 and "slurm: failed" in said, said
    assert "ValueError: boom in step 3" in said and "Traceback" in said and "rank 1" in said
    at = re.search(r"boom in step 3 at ([0-9.]+)", said)
    assert at is not None and time.time() - float(at[1]) < 30  # the job is over, and the verb that waited for it
    assert "rank 1" in str(told(nodes, "boom")["cause"])
    nothing_left(nodes)
    secret = [path for path in (nodes.desk.folder / "runs/boom").rglob("*") if path.is_file()]
    assert not [path for path in secret if b"RAY_AUTH_TOKEN=" in path.read_bytes().replace(b"TOKEN=$(od", b"")]


def test_scancel_leaves_nothing(nodes: cluster.Slurm) -> None:
    job = submit(nodes, "cancelled", "model.name=slowly:Slow", "train.steps=1000")
    metrics = nodes.desk.folder / "runs/cancelled/metrics.jsonl"
    output = nodes.desk.folder / "cancelled.out"
    cluster.wait(lambda: metrics.exists() and bool(metrics.read_text()), 90, lambda: output.read_text())
    began = time.monotonic()
    assert nodes.call("scancel", job)[0] == 0
    assert ended(nodes, "cancelled", job, 40) == "CANCELLED"
    nothing_left(nodes)
    assert time.monotonic() - began < 30
    assert told(nodes, "cancelled")["status"] == "interrupted", output.read_text()


def test_a_mistake_in_the_job_is_one_line(nodes: cluster.Slurm) -> None:
    job = submit(nodes, "wrong", "train.stepz=3")
    assert ended(nodes, "wrong", job, 60) == "FAILED"
    said = (nodes.desk.folder / "wrong.out").read_text()
    assert said.count("train.stepz: unknown") == 1 and "did you mean 'steps'" in said


def test_a_node_without_ray_is_named(nodes: cluster.Slurm) -> None:
    # Its agent never starts: what a node whose disk or network hangs looks like.
    lame = 'if [ "$SLURM_NODEID" = 1 ]; then sleep 60; else exec python -m sparsetrain node "$@"; fi'
    token = ("env", "RAY_AUTH_TOKEN=" + "5" * 64)
    srun = ("srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--time=5")
    words = ("sh", "-c", lame, "sh", "job.yaml", "name=lame", "cluster.start_timeout=12")
    code, said = nodes.call(*token, *srun, *words, seconds=90)
    assert code and "there are 1 of 2 nodes of Ray; missing: node2" in said, said
    nothing_left(nodes)


@pytest.mark.timeout(400)  # three starts, one after another
def test_a_job_whose_time_is_over_saves_queues_again_and_goes_on_bit_for_bit(nodes: cluster.Slurm) -> None:
    settings = ("train.steps=24", "model.name=slowly:Slow")
    job = submit(nodes, "again", *settings)
    output = nodes.desk.folder / "again.out"
    metrics = nodes.desk.folder / "runs/again/metrics.jsonl"
    cluster.wait(lambda: metrics.exists() and bool(metrics.read_text()), 90, lambda: output.read_text())
    assert nodes.call("scancel", "--signal=USR1", job)[0] == 0  # as --signal does
    cluster.wait(lambda: state(nodes, job) == "PENDING", 40, lambda: output.read_text())
    said = output.read_text()
    assert "again: saved at step " in said and f"slurm: job {job} is requeued" in said
    assert told(nodes, "again")["status"] == "interrupted"
    nothing_left(nodes)
    cluster.wait(lambda: nodes.states() == "idle idle", 60, nodes.states)
    time.sleep(2)
    assert nodes.call("scontrol", "update", f"JobId={job}", "StartTime=now")[0] == 0
    assert ended(nodes, "again", job, 150) == "COMPLETED", output.read_text()
    assert told(nodes, "again")["attempts"] == 2
    straight = nodes.call(
        "sbatch",
        "--parsable",
        "--output=straight.out",
        str(REPOSITORY / "launchers/slurm.sbatch"),
        "job.yaml",
        "name=straight",
        *settings,
    )[1].strip()
    assert ended(nodes, "straight", straight, 100) == "COMPLETED"
    digests = [told(nodes, name)["result"]["weights_digest"] for name in ("again", "straight")]  # type: ignore[index]
    assert digests[0] == digests[1]


def test_a_job_that_is_over_its_own_limit_saves_and_does_not_queue_again(nodes: cluster.Slurm) -> None:
    code, said = limited(nodes, "limited", "cluster.launcher.ray=true", "cluster.strategy=SPREAD")
    assert code == 75 and "limited: saved at step " in said and f"{LIMIT[1]} came" in said, said
    assert (told(nodes, "limited")["status"], told(nodes, "limited")["cause"]) == LIMIT
    assert "requeued" not in said and "limited" not in nodes.call("squeue", "--format=%j")[1]
    nothing_left(nodes)


def test_doctor_sees_all_nodes(nodes: cluster.Slurm) -> None:
    srun = ("srun", "--nodes=2", "--ntasks-per-node=1", "--time=5", "python", "-m", "sparsetrain.doctor", "job.yaml")
    code, said = nodes.call(*srun, seconds=120)
    assert code == 0, said
    assert "2 of 2 rank(s) by slurm" in said and "node1/0" in said and "no problem found" in said, said


def test_status_and_cancel_know_the_job(nodes: cluster.Slurm) -> None:
    job = ("job.yaml", "name=ended", "model.name=slowly:Slow", "train.steps=1000", "cluster.strategy=SPREAD")
    slurm = ("cluster.launcher.nodes=2", "cluster.launcher.ray=true")
    code, said = nodes.call("sparsetrain", "launch", *job, *slurm, "--on", "slurm", seconds=60)
    assert code == 0, said
    metrics = nodes.desk.folder / "runs/ended/metrics.jsonl"
    cluster.wait(lambda: metrics.exists() and bool(metrics.read_text()), 90, lambda: "no row")
    code, said = nodes.call("sparsetrain", "status", "ended", seconds=60)
    assert said.startswith("ended: running") and "slurm job " in said and "ranks on node1, node2" in said, said
    code, said = nodes.call("sparsetrain", "cancel", "ended", seconds=90)
    assert code == 0 and "has ended; `sparsetrain resume" in said, said
    assert told(nodes, "ended")["status"] == "interrupted"
    nothing_left(nodes)
