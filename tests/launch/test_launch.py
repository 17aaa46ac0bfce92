"""The verb launch: the plan of each launcher, what is refused, and that exit codes and signals pass through."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

import mpi_ranks
import pytest
from click.testing import CliRunner
from commands import REPOSITORY

from sparsetrain import registry
from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job, parse
from sparsetrain.launch import slurm_job
from sparsetrain.launch.launch import _meant, plan_of
from sparsetrain.launch.launchers.mpi import ROOT
from sparsetrain.launch.launchers.slurm import AGENTS, RANKS, TORCHRUNS, Slurm, script, torchruns
from sparsetrain.launch.plan import LaunchPlan, page

PYTHON = sys.executable
# What these launchers cannot do without.
NEEDED = {
    "ray_cluster": ("cluster.launcher.head_ip=127.0.0.1", "cluster.launcher.ssh_user=me"),
    "ray_job": ("cluster.launcher.address=http://head:8265",),
    "kuberay": ("cluster.launcher.image=registry/sparsetrain:1", "cluster.launcher.pvc=runs"),
}
FLAVOURS = {"MPICH": "HYDRA build details:", "Open MPI": "mpirun (Open MPI) 5.0.11"}


def program(folder: pathlib.Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with programs that only say what they are, in front of all others and beside the interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("torchrun", "sbatch"):
        program(folder, name, "exit 0")
    program(folder, "mpiexec", f"echo '{FLAVOURS['MPICH']}'")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    return folder


def launching(*words: str) -> subprocess.Popen[str]:
    """Start `sparsetrain launch quickstart --on WORDS` with the programs that are there."""
    code = f"import sys; sys.executable = {sys.executable!r}; from sparsetrain.cli import main; main()"
    return subprocess.Popen(
        [PYTHON, "-c", code, "launch", "quickstart", "--on", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def plan(launcher: Any, workers: Any = 4, **cluster: Any) -> LaunchPlan:
    tree = {"name": "one", "cluster": {"launcher": launcher, "workers": workers, **cluster}}
    return plan_of(parse(tree), os.environ)


@pytest.mark.parametrize("name", registry.names("launcher"))
def test_every_launcher_shows_its_plan_and_writes_nothing(programs: pathlib.Path, name: str) -> None:
    words = ["launch", "quickstart", "--on", name, "--dry-run", *NEEDED.get(name, ())]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("quickstart: 2 worker(s) of 1 CPU by ")
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
    shown = found["plans"][0] if "plans" in found else found
    assert (shown["launcher"], shown["workers"]) == (name, 2)
    assert os.listdir() == ["bin"]


def test_the_page_of_clusters_knows_every_launcher_and_its_commands_are_plans(
    programs: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: [])  # its hosts are made up
    text = (REPOSITORY / "cluster_configs/README.md").read_text().replace("\\\n", "")
    assert [name for name in registry.names("launcher") if not re.search(rf"--on {name}\b", text)] == ["ray"]
    commands = re.findall(r"^ *sparsetrain launch (.*?)(?: +#.*)?$", text, re.MULTILINE)
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("job.yaml", "--dry-run")]
        done = CliRunner().invoke(cli, ["launch", "quickstart", *words, "--dry-run"])
        assert done.exit_code == 0, (command, done.exception)
    assert len(commands) >= 10


@pytest.mark.parametrize("name", registry.names("launcher"))
def test_every_plan_says_over_which_interface_and_how_long(programs: pathlib.Path, name: str) -> None:
    words = ["launch", "quickstart", "--on", name, "--dry-run", *NEEDED.get(name, ())]
    said = CliRunner().invoke(cli, words).output
    assert "\n  interface  the one by which a rank reaches rank 0 (cluster.interface)\n" in said
    assert "\n  time limit  none (cluster.time_limit)\n" in said
    said = CliRunner().invoke(cli, [*words, "cluster.interface=ib0", "cluster.time_limit=90"]).output
    assert "\n  interface  ib0\n  time limit  90 s, then saved and left\n" in said


def test_an_interface_that_this_machine_lacks_is_one_line(programs: pathlib.Path) -> None:
    words = ["launch", "quickstart", "--on", "mpi", "cluster.interface=none0"]
    done = CliRunner().invoke(cli, words)
    assert str(done.exception).startswith("cluster.interface: no network interface 'none0' on ")
    assert os.listdir() == ["bin"]
    assert CliRunner().invoke(cli, [*words, "--dry-run"]).exit_code == 0
    for name in ("-n 1", "a\0b", "eth0\n-x", ""):
        with pytest.raises(JobError, match=r"^cluster\.interface: "):
            plan("mpi", interface=name)


def test_on_and_another_launcher_are_one_too_many(programs: pathlib.Path) -> None:
    done = CliRunner().invoke(cli, ["launch", "quickstart", "--on", "local", "cluster.launcher=mpi", "--dry-run"])
    assert str(done.exception) == "--on: local, and cluster.launcher=mpi is given, too; allowed: one of them"


@pytest.mark.parametrize(
    ("code", "after", "meant"),
    [
        (0, {"status": "interrupted", "code": 75}, 0),
        (1, {"status": "interrupted", "code": 75}, 75),
        (143, {"status": "failed", "code": 1}, 1),
        (1, {"status": "failed", "code": 2}, 2),
        (2, {"status": "failed", "code": 2}, 2),
        (143, {"status": "running"}, 143),
        (1, {"status": "finished", "code": None}, 1),
        (130, {"status": "interrupted", "code": None}, 130),
        (143, {"status": "failed", "code": "75"}, 143),
        (143, {"status": "failed", "code": 9, "ended": 1.0}, 143),  # of a run before
    ],
)
def test_the_code_of_the_rank_that_knows_counts(code: int, after: dict[str, Any], meant: int) -> None:
    assert _meant(code, {"status": "failed", "code": 9, "ended": 1.0}, after) == meant


def test_local_is_this_machine_alone() -> None:
    assert plan("local").line() == "one: 4 worker(s) of 1 CPU by local on this machine, PACK"
    with pytest.raises(JobError, match=r"cluster.address: head:6379 is a cluster, and cluster.launcher=local is this"):
        plan("local", address="head:6379")


def test_torchrun_on_one_machine_and_on_several(programs: pathlib.Path) -> None:
    path = str(pathlib.Path("runs/one/launch/job.yaml").absolute())
    start = (str(programs / "torchrun"), "--standalone", "--nproc-per-node", "4", "-m", "sparsetrain.worker", path)
    assert plan("torchrun").command == start
    several = plan({"name": "torchrun", "nodes": 2, "endpoint": "localhost:29400"})
    assert several.command[1:3] == ("--nnodes", "2") and several.command[-5:-3] == ("--nproc-per-node", "2")
    assert several.nodes == 2 and " on 2 node(s)" in several.line()


@pytest.mark.parametrize(
    ("flavour", "local", "options", "line"),
    [
        ("MPICH", [], ["-f"], "localhost:2"),
        (
            "Open MPI",
            ["--bind-to", "none", "--oversubscribe"],
            ["--bind-to", "none", "--hostfile"],
            "localhost slots=2",
        ),
    ],
)
def test_both_mpis(
    programs: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    flavour: str,
    local: list[str],
    options: list[str],
    line: str,
) -> None:
    for name in ROOT:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WANDB_API_KEY", "hidden")
    program(programs, "mpiexec", f"echo '{FLAVOURS[flavour]}'")
    path = str(pathlib.Path("runs/one/launch/job.yaml").absolute())
    worker = [sys.executable, "-m", "sparsetrain.worker", path]
    assert list(plan("mpi").command) == [str(programs / "mpiexec"), *local, "-n", "4", *worker]
    over = " ".join(plan("mpi", interface="lo").command)
    assert ("-iface lo -genv FI_TCP_IFACE lo " in over) == (flavour == "MPICH")
    assert ("btl_tcp_if_include lo --mca oob_tcp_if_include lo " in over) == (flavour == "Open MPI")
    hosts = plan({"name": "mpi", "hosts": ["localhost", "127.0.0.1"]})
    (file,) = hosts.files
    assert list(hosts.command[1 : 2 + len(options)]) == [*options, file.path] and file.text.splitlines()[0] == line
    assert file.path in page(hosts) and line in page(hosts)
    assert ("-x WANDB_API_KEY " in page(hosts)) == (flavour == "Open MPI") and "hidden" not in page(hosts)


def test_open_mpi_and_root(programs: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "mpiexec", f"echo '{FLAVOURS['Open MPI']}'")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv(ROOT[0], raising=False)
    with pytest.raises(JobError, match=f"Open MPI does not run as root; .* {ROOT[0]}=1"):
        plan("mpi")


@pytest.mark.skipif(bool(mpi_ranks.missing()), reason=mpi_ranks.missing())
def test_the_mpiexec_that_is_installed_beside_python_is_found_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an environment that is used by its path, never activated
    assert plan("mpi", workers=2).command[1] in ("-n", "--oversubscribe")


def test_a_batch_script(programs: pathlib.Path) -> None:
    options = {
        "name": "slurm",
        "nodes": 2,
        "time": "1-02:00:00",
        "partition": "gpu",
        "account": "team_1",
        "notice": 300,
    }
    (file,) = plan(options, cpus_per_worker=1.5, gpus_per_worker=1).files
    lines = [line.removeprefix("#SBATCH ") for line in file.text.splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "--job-name=one",
        "--nodes=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=2",
        "--gpus-per-task=1",
        "--time=1-02:00:00",
        "--partition=gpu",
        "--account=team_1",
        f"--output={pathlib.Path('runs/one/launch').absolute()}/%j.out",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@300",
    ]
    (never,) = plan({"name": "slurm", "notice": 0}).files
    assert "--no-requeue" in never.text and "--signal" not in never.text


COPIED = '"${@:-quickstart}"'
SCRIPTS = {
    "slurm": (f"python -m sparsetrain.worker {COPIED}", RANKS),
    "slurm_ray": (f"python -m sparsetrain node {COPIED}", AGENTS),
    "slurm_torchrun": (torchruns("torchrun", '"${WORKERS:-1}"', COPIED), TORCHRUNS),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_to_copy_is_what_the_launcher_writes(name: str) -> None:
    text = (REPOSITORY / f"launchers/{name}.sbatch").read_text()
    comment = "".join(line for line in text.splitlines(keepends=True)[1:] if line.startswith("# "))
    comment = comment[: comment.index("# A virtual environment")]
    lines = Slurm(Slurm.Config(nodes=2)).directives("sparsetrain", "%x-%j.out", 1)
    worker, notes = SCRIPTS[name]
    assert text == script(lines, worker, comment, notes)


def test_a_batch_script_for_ray(programs: pathlib.Path) -> None:
    options = {"name": "slurm", "nodes": 2, "ray": True}
    tree = {"workers": {"min": 2, "max": 5}, "cpus_per_worker": 2, "gpus_per_worker": 1}
    (file,) = plan(options, **tree).files
    lines = [line.removeprefix("#SBATCH ") for line in file.text.splitlines() if line.startswith("#SBATCH")]
    assert lines[2:5] == ["--ntasks-per-node=1", "--cpus-per-task=6", "--gpus-per-task=3"]
    assert file.text.splitlines()[-1].endswith(
        f" -m sparsetrain node {pathlib.Path('runs/one/launch').absolute()}/job.yaml"
    )
    assert "export RAY_AUTH_TOKEN" in file.text
    for options, who in (({"ray": True}, "Ray's"), ({"torchrun": True}, "torchrun's")):
        with pytest.raises(JobError, match=rf"^cluster\.transport: mpi needs ranks that srun has started, not {who}"):
            plan({"name": "slurm", **options}, workers=2, transport="mpi")
    with pytest.raises(JobError, match=r"^cluster\.launcher\.torchrun: is true, and so is ray; allowed: one"):
        plan({"name": "slurm", "ray": True, "torchrun": True})


def test_a_batch_script_for_torchrun(programs: pathlib.Path) -> None:
    (file,) = plan({"name": "slurm", "nodes": 2, "torchrun": True}, cpus_per_worker=2).files
    lines = [line.removeprefix("#SBATCH ") for line in file.text.splitlines() if line.startswith("#SBATCH")]
    assert lines[2:4] == ["--ntasks-per-node=1", "--cpus-per-task=4"]
    words = shlex.split(file.text.splitlines()[-1])
    assert words[-2:] == ["sh", f"{pathlib.Path('runs/one/launch').absolute()}/job.yaml"]
    inner = shlex.split(words[-3])
    assert inner[:3] == ["trap", "", "USR1;"] and inner[4] == str(programs / "torchrun")
    assert inner[inner.index("--nproc-per-node") + 1] == "2" and inner[-1] == "$@"


@pytest.mark.parametrize(
    ("launcher", "workers", "said"),
    [
        (
            {"name": "torchrun", "nodes": 3, "endpoint": "localhost:1"},
            4,
            "cluster.launcher.nodes: 3 nodes do not share",
        ),
        ({"name": "torchrun", "nodes": 2}, 4, "cluster.launcher.endpoint: give HOST:PORT"),
        (
            {"name": "torchrun", "nodes": 2, "endpoint": "nowhere.invalid:1"},
            4,
            "cluster.launcher.endpoint: nowhere.inv",
        ),
        ({"name": "mpi", "hosts": ["localhost", "nowhere.invalid"]}, 4, "cluster.launcher.hosts: no host 'nowhere.inv"),
        ({"name": "slurm", "nodes": 3}, 4, "cluster.launcher.nodes: 3 nodes do not share cluster.workers (4) evenly"),
        (
            "slurm",
            {"min": 2, "max": 4},
            "cluster.workers: 2 to 4 is for Ray; slurm starts a fixed number (allowed with cluster.launcher.ray=true)",
        ),
    ],
)
def test_what_cannot_be_started_is_refused(programs: pathlib.Path, launcher: Any, workers: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        plan(launcher, workers)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("mpi", "hosts=[localhost,nowhere.invalid]", "cluster.launcher.hosts: no host 'nowhere.invalid' is known here"),
        ("deepspeed", "hosts=[nowhere.invalid]", "cluster.launcher.hosts: no host 'nowhere.invalid' is known here"),
        ("torchrun", "endpoint=nowhere.invalid:1", "cluster.launcher.endpoint: nowhere.invalid:1: "),
    ],
)
def test_hosts_that_only_the_cluster_knows_are_a_warning_in_a_dry_run(
    programs: pathlib.Path, name: str, option: str, said: str
) -> None:
    words = ["launch", "quickstart", "--on", name, f"cluster.launcher.{option}"]
    words += ["cluster.launcher.nodes=2"] if name == "torchrun" else []
    done = CliRunner().invoke(cli, [*words, "--dry-run"])
    assert done.exit_code == 0 and done.stdout.startswith("quickstart: 2 worker(s)"), done.output
    assert done.stderr.startswith(f"warning: {said}")
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, JobError) and str(refused.exception).startswith(said)


@pytest.mark.parametrize("word", ["gpu\n#SBATCH --wrap=x", "$(id)", "a b", "-x", ""])
def test_no_option_can_bring_a_line_of_its_own(word: str) -> None:
    with pytest.raises(JobError, match=r"^cluster\.launcher\.partition: "):
        parse({"name": "one", "cluster": {"launcher": {"name": "slurm", "partition": word}}})


@pytest.mark.parametrize("folder", ["a\n#SBATCH --x", "my runs", "r%u"])
def test_no_folder_can_either(programs: pathlib.Path, folder: str) -> None:
    with pytest.raises(JobError, match=r"^log\.folder: Slurm's scripts take no such folder"):
        plan_of(parse({"name": "one", "log": {"folder": folder}, "cluster": {"launcher": "slurm"}}), os.environ)


@pytest.mark.parametrize("name", ["torchrun", "mpi", "slurm", "deepspeed"])
def test_a_missing_program_is_named(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    done = CliRunner().invoke(cli, ["launch", "quickstart", "--on", name])
    assert isinstance(done.exception, JobError) and "is not installed here" in str(done.exception)


def test_run_does_not_start_what_belongs_to_another_launcher(tmp_path: pathlib.Path) -> None:
    done = CliRunner().invoke(
        cli, ["run", "quickstart", "cluster.launcher=slurm", f"log.folder={tmp_path}", "--dry-run"]
    )
    assert str(done.exception).startswith(
        "cluster.launcher: this verb starts Ray; `sparsetrain launch` gives the job to"
    )


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_what_was_started(programs: pathlib.Path, code: int) -> None:
    program(programs, "torchrun", f'cp "$6" seen.yaml; exit {code}')
    done = CliRunner().invoke(cli, ["launch", "quickstart", "--on", "torchrun", "train.steps=7"])
    assert done.exit_code == code
    seen = load_job("seen.yaml", ())
    assert (seen.train.steps, seen.cluster.launcher.name) == (7, "ray")  # ranks are told nothing of who starts them


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_a_signal_goes_on_to_what_was_started(programs: pathlib.Path, name: str) -> None:
    program(programs, "torchrun", f"trap 'echo told; exit 9' {name}; echo up; while :; do sleep 0.1; done")
    process = launching("torchrun")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)][1] == "up\n"
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.communicate(timeout=20)[0] == "told\n"
    assert process.returncode == (9 if name == "USR1" else 130)  # it was told to end


def test_what_a_command_leaves_behind_when_a_signal_ends_it_is_ended(programs: pathlib.Path) -> None:
    program(programs, "torchrun", "sleep 300 & echo $! > child; echo up; wait")
    process = launching("torchrun")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)][1] == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)  # the child has its standard output, too
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pathlib.Path("child").read_text()), 0)


def test_an_answer_of_sbatch_that_is_no_number_is_an_error(programs: pathlib.Path) -> None:
    program(programs, "sbatch", "echo hello")
    done = CliRunner().invoke(cli, ["launch", "quickstart", "--on", "slurm"])
    assert str(done.exception) == "cluster.launcher: sbatch answered 'hello', not the number of a job"
    program(programs, "sbatch", "echo 'Invalid partition name specified' >&2; exit 1")
    done = CliRunner().invoke(cli, ["launch", "quickstart", "--on", "slurm"])
    assert str(done.exception) == "cluster.launcher: sbatch refuses: Invalid partition name specified"


def test_a_submitted_job_is_followed_to_its_end(programs: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "POLL_S", 0.01)
    program(programs, "sbatch", "echo 17")
    states = "RUNNING 0:0\nRUNNING 0:0\nPENDING 0:0\nRUNNING 0:0\nFAILED 4:0"
    pathlib.Path("states").write_text(states + "\n")
    body = """
line=$(head -n 1 states); sed -i 1d states
echo "JobId=17 JobState=${line% *} Reason=None ExitCode=${line#* } DerivedExitCode=0:0"
echo "row $line" >> runs/quickstart/launch/17.out"""
    program(programs, "scontrol", body)
    done = CliRunner().invoke(cli, ["launch", "quickstart", "--on", "slurm", "--wait"])
    assert done.exit_code == 4, done.output
    rows = [line for line in done.output.splitlines() if line.startswith(("row", "slurm: "))]
    assert rows == [
        "row RUNNING 0:0",
        "row RUNNING 0:0",
        "slurm: pending",
        "row PENDING 0:0",
        "row RUNNING 0:0",
        "slurm: failed",
        "row FAILED 4:0",
    ]


def test_ctrl_c_cancels_a_job_that_is_followed(programs: pathlib.Path) -> None:
    program(programs, "sbatch", "echo 17")
    program(programs, "scontrol", "echo JobState=RUNNING ExitCode=0:0; touch asked")
    program(programs, "scancel", 'echo "$@" > cancelled')
    process = launching("slurm", "--wait")
    deadline = time.monotonic() + 30
    while not pathlib.Path("asked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "slurm: job 17 is cancelled" in process.communicate(timeout=20)[0]
    assert process.returncode == 130 and pathlib.Path("cancelled").read_text() == "17\n"
