"""KubeRay: the manifests, field by field, what is refused, and what kubectl is told."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jsonschema
import kuberay_model
import pytest
import yaml
from click.testing import CliRunner
from commands import REPOSITORY

from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job, parse
from sparsetrain.launch import kube_job
from sparsetrain.launch.cancel import cancel_run
from sparsetrain.launch.launch import plan_of
from sparsetrain.launch.plan import LaunchPlan
from sparsetrain.launch.standing import standing

KEPT = REPOSITORY / "cluster_configs/kuberay/rayjob.yaml"
SCHEMA = REPOSITORY / "shared/kuberay/rayjob.schema.json"
OPTIONS = {"image": "registry.example/sparsetrain:0.1", "pvc": "runs", "ray_version": "2.60.0"}


def plan(name: str = "one", cluster: Any = None, more: Any = None, **options: Any) -> LaunchPlan:
    given = {"launcher": {"name": "kuberay", **OPTIONS, **options}, **(cluster or {})}
    return plan_of(parse({"name": name, "cluster": given, **(more or {})}), {}, dry=True)


def manifests(found: LaunchPlan) -> tuple[kuberay_model.ConfigMap, kuberay_model.RayJob]:
    first, second = yaml.safe_load_all(found.files[0].text)
    return kuberay_model.ConfigMap.model_validate(first), kuberay_model.RayJob.model_validate(second)


def test_the_manifests_hold_what_is_known_and_nothing_else() -> None:
    found = plan(cluster={"workers": 4, "cpus_per_worker": 1.5, "gpus_per_worker": 1}, queue="team", secrets=["wandb"])
    assert found.command[1:] == ("apply", "-f", found.files[0].path)
    held, job = manifests(found)
    assert parse(yaml.safe_load(held.data["job.yaml"])).cluster.address == "auto"
    assert job.metadata.labels == {"kueue.x-k8s.io/queue-name": "team"} and job.spec.backoffLimit == 2
    cluster = job.spec.rayClusterSpec
    assert cluster.headGroupSpec.rayStartParams == {"num-cpus": "0"}
    (workers,) = cluster.workerGroupSpecs
    assert (workers.replicas, workers.minReplicas, workers.maxReplicas) == (4, 4, 4)
    (container,) = workers.template.spec.containers
    limits = {"cpu": "2", "nvidia.com/gpu": "1", "memory": "8Gi"}
    assert container.resources.limits == container.resources.requests == limits
    assert container.envFrom[0].secretRef == {"name": "wandb"}
    (head,) = cluster.headGroupSpec.template.spec.containers
    places = {mount.name: mount.mountPath for mount in head.volumeMounts}
    assert job.spec.entrypoint.endswith(f"run {places['job']}/job.yaml log.folder={places['runs']}")
    assert places["shm"] == "/dev/shm"


def test_a_token_is_a_reference_and_spares_are_pods(tmp_path: pathlib.Path) -> None:
    more = {"recovery": {"spares": 1}, "checkpoint": {"url": "s3://bucket/runs"}}
    _, job = manifests(plan(more=more, pvc=None, token_secret="ray-token"))
    assert job.spec.rayClusterSpec.authOptions == kuberay_model.Auth(mode="token", secretName="ray-token")
    assert job.spec.rayClusterSpec.workerGroupSpecs[0].replicas == 3
    assert manifests(plan())[1].spec.rayClusterSpec.authOptions.secretName is None


def test_pods_end_after_ranks_that_have_a_limit_have_saved() -> None:
    ends = [
        manifests(plan(cluster={"time_limit": limit}, deadline=2000))[1].spec.activeDeadlineSeconds
        for limit in (None, 99.5, 1900)
    ]
    assert ends == [2000, 400, 2000]


def test_the_manifest_to_copy_is_what_the_launcher_writes() -> None:
    words = [f"cluster.launcher.{key}={value}" for key, value in OPTIONS.items()]
    job = load_job("quickstart", ("cluster.launcher=kuberay", *words, "cluster.launcher.queue=training"))
    kept = KEPT.read_text()
    comment = "".join(line for line in kept.splitlines(keepends=True) if line.startswith("# "))
    assert comment and kept == comment + plan_of(job, {}, dry=True).files[0].text


@pytest.mark.skipif(not SCHEMA.is_file(), reason="the schema of KubeRay's definition is not here")
def test_the_manifest_follows_the_definition_of_kuberay() -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    job = list(yaml.safe_load_all(KEPT.read_text()))[1]
    assert [error.message for error in validator.iter_errors(job)] == []
    del job["spec"]
    assert list(validator.iter_errors({**job, "spec": "none"})) != []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": None}, "cluster.launcher.image: name an image with sparsetrain in it"),
        ({"pvc": None}, "cluster.launcher.pvc: pods keep nothing; name a claim for the runs, or give checkpoint.url"),
        ({"name": "My_run"}, "name: 'My_run' is no name for Kubernetes; allowed: up to 47 of a-z, 0-9 and -"),
        ({"name": "a" * 48}, "name: "),
        ({"queue": "a b"}, "cluster.launcher.queue: "),
        ({"image": "x\ny"}, "cluster.launcher.image: "),
        ({"memory": "lots"}, "cluster.launcher.memory: "),
        ({"cluster": {"address": "head:6379"}}, "cluster.address: the job gets a cluster of its own"),
        ({"cluster": {"workers": {"min": 1, "max": 2}}}, "cluster.workers: kuberay starts a fixed number"),
        ({"cluster": {"strategy": "STRICT_PACK"}}, "cluster.strategy: STRICT_PACK wants one node"),
        ({"cluster": {"transport": "mpi"}}, "cluster.transport: mpi needs ranks that mpiexec has started"),
    ],
)
def test_what_cannot_be_applied_is_refused(options: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        plan(**options)
    assert str(refused.value).startswith(said)


@pytest.fixture
def bare(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder to work in, that is the only one in which programs are looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(kube_job, "POLL_S", 0.01)
    return tmp_path


def launch(*words: str) -> Any:
    options = [f"cluster.launcher.{key}={value}" for key, value in OPTIONS.items()]
    return CliRunner().invoke(cli, ["launch", "quickstart", "--on", "kuberay", *options, *words])


def put_kubectl(folder: pathlib.Path, states: list[Any], apply: str = "exit 0") -> None:
    """A kubectl that answers `get` with one state after the other, the last one again and again."""
    (folder / "states").write_text("".join(f"{json.dumps(state) if state is not None else ''}\n" for state in states))
    body = """#!/bin/sh
case "$1" in
get) head -n 1 states; [ "$(wc -l < states)" -gt 1 ] && sed -i 1d states; exit 0;;
apply) %s;;
logs) echo "$@" > logged;;
delete) echo "$@" > deleted;;
esac
"""
    (folder / "kubectl").write_text(body % apply)
    (folder / "kubectl").chmod(0o755)


def test_without_kubectl_there_is_one_line_and_a_dry_run_still_works(
    bare: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bare))
    said = "cluster.launcher: kubectl is not installed here; install it, and a context that reaches the cluster"
    assert str(launch().exception) == said
    done = launch("--dry-run")
    assert done.exit_code == 0 and "kind: RayJob" in done.output


def test_a_cluster_that_does_not_answer_and_a_name_that_is_taken(bare: pathlib.Path) -> None:
    (bare / "kubectl").write_text("#!/bin/sh\necho The connection to the server was refused >&2; exit 1\n")
    (bare / "kubectl").chmod(0o755)
    assert str(launch().exception) == "cluster.launcher: kubectl refuses: The connection to the server was refused"
    put_kubectl(bare, [{"status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}])
    said = str(launch().exception)
    assert said.startswith("name: quickstart is a RayJob in default already (RUNNING); give a new name, or remove it")
    assert not (bare / "runs").exists()


@pytest.mark.parametrize(("last", "code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_a_job_is_applied_and_followed_to_its_end(bare: pathlib.Path, last: str, code: int) -> None:
    ended = {"jobDeploymentStatus": "Complete" if code == 0 else "Failed", "jobStatus": last}
    states = [{"status": {"jobDeploymentStatus": state}} for state in ("Initializing", "Running", "Running")]
    put_kubectl(bare, [None, {"kind": "RayJob"}, *states, {"status": ended}])
    done = launch("--wait")
    assert done.exit_code == code, (done.output, done.exception)
    assert [line for line in done.output.splitlines() if line.startswith("kuberay:")] == [
        "kuberay: initializing",
        "kuberay: running",
        f"kuberay: {ended['jobDeploymentStatus'].lower()}",
    ]
    assert (bare / "logged").read_text() == "logs --follow job/quickstart -n default\n"


def test_what_was_applied_is_shown_and_removed(bare: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = {"kind": "RayJob", "status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}
    put_kubectl(bare, [None])
    assert launch().exit_code == 0
    put_kubectl(bare, [{"kind": "RayJob"}, running, running, None])
    assert [standing(bare / "runs/quickstart").state for _ in range(2)] == ["pending", "running"]
    assert cancel_run("quickstart", 5.0) == 0
    assert capsys.readouterr().out == "quickstart: kuberay job quickstart has ended; launching it again continues it\n"
    assert (bare / "deleted").read_text().startswith("delete rayjobs.ray.io quickstart -n default")


def test_what_is_not_applied_is_not_followed(bare: pathlib.Path) -> None:
    put_kubectl(bare, [None], apply="exit 3")
    assert launch("--wait").exit_code == 3
