"""`ray up`: its configuration in Ray's own eyes, the commands, and what is refused."""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from commands import REPOSITORY

from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job, parse
from sparsetrain.launch.cancel import cancel_run
from sparsetrain.launch.launch import plan_of
from sparsetrain.launch.plan import LaunchPlan, page
from sparsetrain.launch.standing import standing

INTERPRETER = sys.executable

LOCAL: dict[str, Any] = {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"], "ssh_user": "me"}
ME = ("cluster.launcher.ssh_user=me",)
WHEEL = "sparsetrain-0.1.0-py3-none-any.whl"
STOCK: dict[str, Any] = {  # what an image of Ubuntu 24.04 lacks
    "mounts": [f"dist/{WHEEL}:~/{WHEEL}"],
    "setup": [
        "sudo apt-get update && sudo apt-get install -y python3-venv g++",
        f"python3 -m venv ~/venv && ~/venv/bin/pip install ~/{WHEEL}",
        "echo 'export PATH=~/venv/bin:$PATH' >> ~/.bashrc",
    ],
}
AWS: dict[str, Any] = {
    **{"provider": "aws", "region": "us-west-2", "machine": "m5.xlarge", "nodes": 2},
    **{"image": "ami-0123456789abcdef0", **STOCK},
}
GCP: dict[str, Any] = {
    **{"provider": "gcp", "region": "us-west1", "zone": "us-west1-a", "project": "my-project"},
    **{"machine": "n1-standard-4", "nodes": 2},
    **{"image": "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64", **STOCK},
}
PROVIDERS = {"local": LOCAL, "aws": AWS, "gcp": GCP}


def plan(cluster: Any = None, **options: Any) -> LaunchPlan:
    given = {"launcher": {"name": "ray_cluster", **options}, **(cluster or {})}
    return plan_of(parse({"name": "one", "cluster": given}), {}, dry=True)


def tree(found: LaunchPlan) -> dict[str, Any]:
    return yaml.safe_load(found.files[0].text)


def seen_by_ray(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration as Ray fills it in, after Ray has checked it. Its module is private: it may move."""
    private = pytest.importorskip("ray.autoscaler._private.util", reason="Ray's validator is not where it was")
    prepared = private.prepare_config(config)
    private.validate_config(prepared)
    return prepared


@pytest.mark.parametrize("provider", PROVIDERS)
def test_ray_takes_the_configuration_and_wants_all_machines_at_once(provider: str) -> None:
    prepared = seen_by_ray(tree(plan(**PROVIDERS[provider])))
    kinds = prepared["available_node_types"]
    assert sum(kind.get("min_workers", 0) for kind in kinds.values()) == prepared["max_workers"] == 1
    own = PROVIDERS[provider].get("setup", [])
    assert prepared["setup_commands"] == own  # none of Ray's own, which would install another Ray
    assert prepared["head_setup_commands"][: len(own)] == own  # then Ray installs the cloud's client, by that `pip`
    starts = (*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"])
    assert [line for line in starts if "ray start" in line and "export RAY_AUTH_MODE=token" not in line] == []
    assert ("ray stop" in starts) == (provider != "local")  # which would end what others run there


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_files_to_copy_are_what_the_launcher_writes(provider: str) -> None:
    words = [f"cluster.launcher.{key}={json.dumps(value)}" for key, value in PROVIDERS[provider].items()]
    job = load_job("quickstart", ("cluster.launcher=ray_cluster", *words))
    text = (REPOSITORY / f"cluster_configs/ray/{provider}.yaml").read_text()
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("# "))
    assert comment and text == comment + plan_of(job, {}, dry=True).files[0].text


def test_the_jobs_of_the_page_are_the_files_to_copy_with_a_token() -> None:
    text = (REPOSITORY / "cluster_configs/README.md").read_text()
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(cluster:\n.*?)```", text, re.DOTALL)]
    shown = [each for each in shown if each["cluster"]["launcher"]["name"] == "ray_cluster"]
    assert [each["cluster"]["launcher"]["provider"] for each in shown] == ["aws", "gcp"]
    for each in shown:
        found = tree(plan_of(parse({"name": "one", **each}), {}, dry=True))
        kept = yaml.safe_load((REPOSITORY / f"cluster_configs/ray/{found['provider']['type']}.yaml").read_text())
        assert found["file_mounts"].pop("~/.ray/auth_token") == "~/.ray/auth_token" and found == kept


def test_the_cluster_comes_up_then_gets_the_job_then_runs_it() -> None:
    found = plan(**LOCAL, folder="/data/runs", python="/opt/venv/bin/python")
    config, job = (file.path for file in found.files)
    assert [words[1:] for words in found.first] == [
        ("up", "-y", "--no-restart", config),
        ("rsync-up", config, job, "~/sparsetrain-one.yaml"),
    ]
    assert found.command[1:3] == ("exec", config)
    assert found.command[3] == (
        "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0; exec /opt/venv/bin/python -m sparsetrain run "
        '"$HOME"/sparsetrain-one.yaml log.folder=/data/runs'
    )
    cluster = yaml.safe_load(found.files[1].text)["cluster"]
    assert (cluster["address"], cluster["start_timeout"]) == ("auto", 900.0)  # machines of a cloud take minutes
    shown = page(found)
    assert shown.index("ray up ") < shown.index("ray rsync-up ") < shown.index("ray exec ")


def test_gpus_a_token_and_what_else_is_on_every_machine() -> None:
    options = {**AWS, "token_file": "~/token", "setup": ["pip install it"], "mounts": ["my.py:~/my.py"]}
    found = tree(plan({"workers": 4, "gpus_per_worker": 1}, **options))
    kinds = found["available_node_types"]
    assert kinds["head"]["resources"] == kinds["worker"]["resources"] == {"CPU": 2, "GPU": 2}
    assert found["file_mounts"] == {"~/.ray/auth_token": "~/token", "~/my.py": "my.py"}
    assert found["setup_commands"] == ["pip install it"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "cluster.launcher.head_ip: is missing; local needs head_ip, ssh_user"),
        ({"head_ip": "10.0.0.1"}, "cluster.launcher.ssh_user: is missing"),
        ({**LOCAL, "machine": "m5.large"}, "cluster.launcher.machine: is not for local; allowed: head_ip, worker_ips"),
        ({**AWS, "head_ip": "10.0.0.1"}, "cluster.launcher.head_ip: is not for aws; allowed: region, zone, machine,"),
        ({**AWS, "region": None}, "cluster.launcher.region: is missing; aws needs region, machine"),
        ({**GCP, "image": None}, "cluster.launcher.image: is missing; gcp needs region, zone, project, machine,"),
        ({**GCP, "project": None}, "cluster.launcher.project: is missing; gcp needs region, zone, project, machine,"),
        ({**AWS, "image": None, "setup": []}, "cluster.launcher.image: is missing; Ray's own choice for AWS has nei"),
        ({**AWS, "mounts": ["my.py"]}, "cluster.launcher.mounts.0: "),
        ({**AWS, "nodes": 3}, "cluster.launcher.nodes: 3 nodes do not share cluster.workers (2) evenly"),
        ({**LOCAL, "worker_ips": ["10.0.0.1"]}, "cluster.launcher.worker_ips: a machine is named twice"),
        ({"provider": "azure"}, "cluster.launcher.provider: "),
        ({**AWS, "cluster": {"address": "head:6379"}}, "cluster.address: the job gets a cluster of its own"),
        ({**AWS, "cluster": {"workers": {"min": 1, "max": 2}}}, "cluster.workers: 1 to 2 is for Ray; ray_cluster"),
    ],
)
def test_what_cannot_be_started_is_refused(options: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        plan(**options)
    assert str(refused.value).startswith(said)


def test_a_host_that_nobody_knows_is_a_warning_in_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(**{**LOCAL, "head_ip": "nowhere.invalid"}).nodes == 2
    assert capsys.readouterr().err == "warning: cluster.launcher: no host 'nowhere.invalid' is known here\n"


@pytest.fixture
def bare(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder to work in with a `ray` that notes what it is told, and that fails at the verb in FAIL."""
    for name, body in {"ray": 'echo "$1" >> said; [ "$1" != "$FAIL" ] || exit 5', "ssh": "", "rsync": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / WHEEL).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path


def launch(*words: str) -> Any:
    options = [f"cluster.launcher.{key}={json.dumps(value)}" for key, value in AWS.items()]
    return CliRunner().invoke(cli, ["launch", "quickstart", "--on", "ray_cluster", *options, *words])


@pytest.mark.parametrize(("fail", "code", "said"), [("none", 0, "up rsync-up exec"), ("rsync-up", 5, "up rsync-up")])
def test_each_command_waits_for_the_one_before(
    bare: pathlib.Path, monkeypatch: pytest.MonkeyPatch, fail: str, code: int, said: str
) -> None:
    monkeypatch.setenv("FAIL", fail)
    done = launch()
    assert done.exit_code == code, (done.output, done.exception)
    assert (bare / "said").read_text().split() == said.split()


@pytest.mark.timeout(60)
def test_what_is_attached_is_shown_and_ended_from_beside(
    bare: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "ray").write_text('#!/bin/sh\necho "$1" >> said; [ "$1" != exec ] || exec sleep 50\n')
    options = [f"cluster.launcher.{key}={json.dumps(value)}" for key, value in AWS.items()]
    words = ["launch", "quickstart", "--on", "ray_cluster", *options]
    # The real ray, which lies beside the interpreter, is not to be found.
    code = f"import sys; sys.executable = {str(bare / 'python')!r}; from sparsetrain.cli import main; main({words!r})"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([INTERPRETER, "-c", code], env=env, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while not (bare / "said").exists() or "exec" not in (bare / "said").read_text():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.1)
        found = standing(bare / "runs/quickstart")
        assert found.state == "running" and found.holder == f"process {process.pid} on {socket.gethostname()}"
        assert cancel_run("quickstart", 20.0) == 0
        assert process.wait(10) == 130
    assert "has ended" in capsys.readouterr().out
    found = standing(bare / "runs/quickstart")
    assert (found.state, found.handed) == ("elsewhere", "ray_cluster job quickstart")
    with pytest.raises(JobError, match="ray_cluster has it in a cluster that cannot be told from here"):
        cancel_run("quickstart", 1.0)


def test_a_missing_file_and_a_silent_machine_are_one_line(bare: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "cluster.launcher.token_file: there is no file nowhere"
    assert str(launch("cluster.launcher.token_file=nowhere").exception) == said
    said = "cluster.launcher.mounts: there is no nothing.py"
    assert str(launch("cluster.launcher.mounts=[nothing.py:~/my.py]").exception) == said

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    words = ["launch", "quickstart", "--on", "ray_cluster", "cluster.launcher.head_ip=127.0.0.1"]
    unknown = CliRunner().invoke(cli, [*words[:-1], "cluster.launcher.head_ip=nowhere.invalid", *ME])
    assert str(unknown.exception) == "cluster.launcher: no host 'nowhere.invalid' is known here"
    done = CliRunner().invoke(cli, [*words, *ME])
    assert str(done.exception).startswith("cluster.launcher: 127.0.0.1 does not answer to ssh: ")
    assert not (bare / "said").exists()
