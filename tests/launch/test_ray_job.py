"""`ray job submit`: its command and runtime environment, what is refused before it is called, and a real head."""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray_heads
import yaml
from click.testing import CliRunner
from commands import REPOSITORY, Desk

from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse, to_yaml
from sparsetrain.launch.cancel import cancel_run
from sparsetrain.launch.elsewhere import handed, note
from sparsetrain.launch.launch import plan_of
from sparsetrain.launch.launchers.ray_job import RayJob
from sparsetrain.launch.launchers.remote import for_ranks
from sparsetrain.launch.plan import LaunchPlan
from sparsetrain.launch.standing import show_standing, standing

TOKEN = "made-up-for-this-test"
SHOWN = "http://head:8265"


def plan(wait: bool = False, cluster: Any = None, **options: Any) -> LaunchPlan:
    given = {"launcher": {"name": "ray_job", "address": SHOWN, **options}, **(cluster or {})}
    return plan_of(parse({"name": "one", "cluster": given}), {}, dry=True, wait=wait)


@pytest.fixture
def bare(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder to work in, in which a `ray` can be put; nothing else is installed, and no token is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def put_ray(folder: pathlib.Path, body: str = 'echo "$@" >> said; exit ${CODE:-0}') -> None:
    (folder / "ray").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "ray").chmod(0o755)


class Head(http.server.BaseHTTPRequestHandler):
    """As much of a dashboard as is asked: `jobs` by submission id, and a token."""

    jobs: dict[str, str]

    def do_GET(self) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(403 if self.headers["Authorization"] else 401, {})
        if self.path == "/api/version":
            return self._answer(200, {"version": "4", "ray_version": "2.60.0"})
        name = self.path.removeprefix("/api/jobs/")
        status, _, code = self.jobs.get(name, "").partition(" ")
        tree = {"status": status, "driver_exit_code": int(code) if code else None}
        return self._answer(200, tree) if name in self.jobs else self._answer(404, {})

    def do_POST(self) -> None:
        name = self.path.removeprefix("/api/jobs/").removesuffix("/stop")
        if self.headers["Authorization"] == f"Bearer {TOKEN}" and self.jobs.get(name) == "RUNNING":
            self.jobs[name] = "STOPPED"
        self._answer(200, {"stopped": True})

    def _answer(self, code: int, tree: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(tree).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a made-up head, and the jobs that it knows."""
    jobs: dict[str, str] = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Known", (Head,), {"jobs": jobs}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", jobs
    server.shutdown()
    server.server_close()
    thread.join()


def launch(address: str, *words: str) -> Any:
    return CliRunner().invoke(
        cli, ["launch", "quickstart", "--on", "ray_job", f"cluster.launcher.address={address}", *words]
    )


def test_what_is_submitted(bare: pathlib.Path) -> None:
    found = plan(excludes=["*.bin"])
    path = f"{bare}/runs/one/launch/runtime_env.yaml"
    assert found.command[:-1] == (
        *("ray", "job", "submit", "--address", SHOWN, "--submission-id", "one"),
        *("--working-dir", str(bare), "--runtime-env", path, "--no-wait", "--", "sh", "-c"),
    )
    assert found.line().startswith(f"one: 2 worker(s) of 1 CPU by ray_job at {SHOWN}")
    (file,) = found.files
    tree = yaml.safe_load(file.text)
    assert file.path == path and tree["excludes"] == [".git", ".venv", "/runs", "/wandb", "*.bin"]
    job = yaml.safe_load(tree["env_vars"]["SPARSETRAIN_JOB"])
    assert job["cluster"]["address"] == "auto" and job["cluster"].get("launcher", {"name": "ray"}) == {"name": "ray"}
    assert "--no-wait" not in plan(wait=True).command
    assert "      SPARSETRAIN_JOB" not in file.text and "\\n" not in file.text  # people can read it


def test_the_words_for_the_head_write_the_job_and_run_it(bare: pathlib.Path) -> None:
    put_ray(bare, 'cat "$4" > seen.yaml; echo "$@" > said')
    script = plan(python=str(bare / "ray"), folder="my/runs").command[-1]
    env = {"PATH": os.environ["PATH"], "SPARSETRAIN_JOB": "name: a 'b' $c\n", "HOME": "/home/me", "TMPDIR": str(bare)}
    subprocess.run(["sh", "-c", script], env=env, check=True)
    assert (bare / "seen.yaml").read_text() == "name: a 'b' $c\n"
    assert (bare / "said").read_text().split()[-1] == "log.folder=/home/me/my/runs"
    assert " log.folder=/data/runs" in plan(folder="/data/runs").command[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": None}, "cluster.launcher.address: give the address of the head's dashboard, http://HOST:8265"),
        ({"address": "head:8265"}, "cluster.launcher.address: "),
        ({"address": "http://me:word@head:8265"}, "cluster.launcher.address: "),
        ({"working_dir": "nowhere"}, "cluster.launcher.working_dir: "),
        ({"folder": "a'; rm b"}, "cluster.launcher.folder: "),
        ({"cluster": {"address": "head:6379"}}, "cluster.address: the job finds the cluster that it is submitted to"),
        ({"cluster": {"transport": "mpi"}}, "cluster.transport: mpi needs ranks that mpiexec has started"),
    ],
)
def test_what_cannot_be_submitted_is_refused(bare: pathlib.Path, options: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        plan(**options)
    assert str(refused.value).startswith(said)


def test_a_ray_without_its_job_client_is_named(bare: pathlib.Path) -> None:
    put_ray(bare, "exit 2")
    said = 'cluster.launcher: `ray job` is not installed here; pip install "sparsetrain[submit]" brings it'
    assert str(launch(SHOWN).exception) == said


def test_a_head_that_does_not_answer_or_not_to_us_is_one_line(
    bare: pathlib.Path, head: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ray(bare)
    address, _ = head
    field = "cluster.launcher.address: "
    silent = f"http://127.0.0.1:{ray_heads.free_port()}"
    assert str(launch(silent).exception).startswith(f"{field}no Ray dashboard answers at {silent}: ")
    assert str(launch(address).exception).startswith(f"{field}{address} wants a token: set RAY_AUTH_MODE=token and")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert str(launch(address).exception) == f"{field}{address} does not take the token in RAY_AUTH_TOKEN"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "nowhere")
    assert str(launch(address).exception).startswith("RAY_AUTH_TOKEN_PATH: nowhere cannot be read: ")


def test_the_id_is_the_name_of_the_run_and_one_that_runs_is_left_alone(
    bare: pathlib.Path, head: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ray(bare)
    address, jobs = head
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert launch(address).exit_code == 0
    assert "--submission-id quickstart --" in (bare / "said").read_text()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    for path in bare.rglob("*"):
        assert path.is_dir() or TOKEN not in path.read_text()
    jobs["quickstart"] = "RUNNING"
    assert str(launch(address).exception).startswith("name: quickstart is running in that cluster; give a new name")
    jobs["quickstart"] = "FAILED"
    monkeypatch.setenv("CODE", "1")
    put_ray(bare, 'test "$2" = --help || { echo "$@" >> said; exit 7; }')
    assert launch(address, "--wait").exit_code == 7
    assert "--submission-id quickstart-2 --" in (bare / "said").read_text()


@pytest.mark.parametrize(
    ("state", "said", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", 0, 130),
        ("FAILED", 1, 1),
        ("FAILED 75", 1, 75),
        ("FAILED -9", 1, 1),
        ("RUNNING", 0, 1),
        ("SUCCEEDED", 7, 7),
    ],
)
def test_the_exit_code_is_that_of_how_the_job_ended(
    head: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, state: str, said: int, code: int
) -> None:
    address, jobs = head
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    jobs["one"] = state
    assert RayJob(RayJob.Config(address=address)).follow(plan(wait=True), False, said) == code


def test_what_was_submitted_is_shown_and_ended(head: Any, tmp_path, monkeypatch, capsys) -> None:
    address, jobs = head
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    job = parse({"name": "far", "cluster": {"launcher": {"name": "ray_job", "address": address}}})
    folder = tmp_path / "runs/far/launch"
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(to_yaml(for_ranks(job)))
    note(folder, job, LaunchPlan(name="far", launcher="ray_job", workers=2, cpus=1, gpus=0, given="far-2"))
    assert TOKEN not in (folder / "elsewhere.json").read_text()
    assert standing(folder.parent).state == "lost" and standing(folder.parent).cause == "nobody there knows it"
    jobs["far-2"] = "RUNNING"
    show_standing("far", False)
    assert "far: running" in (out := capsys.readouterr().out) and "ray_job job far-2; its folder is there" in out
    assert cancel_run("far", 5.0) == 0 and jobs["far-2"] == "STOPPED"
    assert capsys.readouterr().out == "far: ray_job job far-2 has ended; launching it again continues it\n"
    assert standing(folder.parent).state == "interrupted"


@pytest.mark.parametrize(
    "tree", [{}, [], {"name": "a", "launcher": "none"}, {"name": "--x", "launcher": "slurm"}, {"name": 3}], ids=str
)
def test_a_note_that_is_none_says_nothing(tmp_path, tree: Any) -> None:
    (tmp_path / "elsewhere.json").write_text(json.dumps(tree))
    assert handed(tmp_path) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(ray_heads.missing()), reason=ray_heads.missing() or "there")
def test_a_head_with_a_token_trains_what_is_submitted(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    with ray_heads.ray_head(desk) as (address, env):

        def submit(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
            where = (f"cluster.launcher.address={address}", f"cluster.launcher.folder={tmp_path}/there")
            command = [sys.executable, "-m", "sparsetrain", "launch", "job.yaml", "--on", "ray_job", *where, *words]
            return subprocess.run(
                command, cwd=tmp_path, env=env | variables, capture_output=True, text=True, timeout=200
            )

        wrong = submit(RAY_AUTH_TOKEN="0" * 64)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
        done = submit("--wait", "name=submitted")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((tmp_path / "there/submitted/run.json").read_text())["status"] == "finished"
        script = ["sh", str(REPOSITORY / "launchers/ray_job.sh"), "job.yaml", "name=copied"]
        told = {**env, "ADDRESS": address}
        copied = subprocess.run(script, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=200)
        assert copied.returncode == 0, copied.stdout + copied.stderr
        assert json.loads((tmp_path / "home/runs/copied/run.json").read_text())["status"] == "finished"
        failed = submit("--wait", "name=failing", "model.name=slowly:Boom")
        assert failed.returncode == 1 and "ValueError: boom in step 3" in failed.stdout
        limited = ("name=limited", "model.name=slowly:Slow", "train.steps=1000", "cluster.time_limit=10")
        over = submit("--wait", *limited)
        assert over.returncode == 75 and "limited: saved at step " in over.stdout, over.stdout + over.stderr
        assert ": gloo over " in over.stdout
        assert submit("name=long", "model.name=slowly:Slow", "train.steps=1000").returncode == 0

        def verb(*words: str) -> str:
            command = [sys.executable, "-m", "sparsetrain", *words]
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100).stdout

        until = time.monotonic() + 100
        while "long: running" not in (said := verb("status", "long")) and time.monotonic() < until:
            time.sleep(1)
        assert "long: running" in said and "ray_job job long; its folder is there" in said
        assert "has ended; launching it again continues it" in verb("cancel", "long")
        assert "long: interrupted" in verb("status", "long")
        token = env["RAY_AUTH_TOKEN"].encode()
        written = [path for path in tmp_path.rglob("*") if path.is_file() and token in path.read_bytes()]
        assert written == []
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
