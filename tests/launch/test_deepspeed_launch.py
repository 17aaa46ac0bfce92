"""DeepSpeed's launcher: its command and hostfile, what is refused, and two real ranks."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from commands import REPOSITORY, Desk

from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse
from sparsetrain.engine.deepspeed_config import merged, settings
from sparsetrain.launch.launch import plan_of
from sparsetrain.launch.launchers.deepspeed import PORTS, hostfile, port_of
from sparsetrain.launch.plan import LaunchPlan

MISSING = "" if importlib.util.find_spec("deepspeed") else "deepspeed is not installed"
needs_deepspeed = pytest.mark.skipif(bool(MISSING), reason=MISSING or "there")
HOSTS = ["localhost", "127.0.0.1"]


def plan(env: dict[str, str] | None = None, workers: Any = 4, gpus: float = 0.0, **options: Any) -> LaunchPlan:
    cluster = {"launcher": {"name": "deepspeed", **options}, "workers": workers, "gpus_per_worker": gpus}
    return plan_of(parse({"name": "one", "cluster": cluster}), env or {}, dry=True)


def test_one_machine_takes_no_hostfile_but_its_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # nothing is installed beside it
    found = plan()
    folder = f"{tmp_path}/runs/one/launch"
    assert found.command == (
        *("deepspeed", "--hostfile", f"{folder}/hostfile", "--no_ssh_check", "--master_addr", "127.0.0.1"),
        *("--master_port", str(port_of("one")), "--no_local_rank", "--log_level", "warning"),
        *("--module", "sparsetrain.worker", f"{folder}/job.yaml"),
    )
    assert [file.text for file in found.files] == ["localhost slots=4\n"] and found.nodes == 1
    assert port_of("one") in PORTS and port_of("one") != port_of("two")


def test_several_hosts_by_ssh_or_by_hand() -> None:
    by_ssh = plan(hosts=HOSTS)
    assert by_ssh.files[0].text == "localhost slots=2\n127.0.0.1 slots=2\n" and by_ssh.nodes == 2
    assert by_ssh.command[3:6] == ("--force_multi", "--launcher", "pdsh")
    named = plan(hosts=["localhost:3", "127.0.0.1:1"], launcher="openmpi", master="10.0.0.1", port=4000)
    assert named.files[0].text == "localhost slots=3\n127.0.0.1 slots=1\n"
    assert named.command[3:10] == (
        *("--force_multi", "--launcher", "openmpi", "--master_addr", "10.0.0.1", "--master_port", "4000"),
    )
    by_hand = plan(hosts=HOSTS, no_ssh=True, node_rank=1)
    assert by_hand.command[3:8] == ("--no_ssh", "--node_rank", "1", "--master_addr", "localhost")


def test_the_devices_that_the_environment_leaves_are_the_ones() -> None:
    shown = plan({"CUDA_VISIBLE_DEVICES": "2,5,7"}, workers=2, gpus=1)
    assert shown.command[3:5] == ("--include", "localhost:2,5") and shown.files[0].text == "localhost slots=6\n"
    assert "--include" not in plan({"CUDA_VISIBLE_DEVICES": "2"}).command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hosts": ["localhost", "127.0.0.1", "::1"]}, "cluster.launcher.hosts.2: "),
        ({"hosts": [*HOSTS, "127.0.0.2"]}, "cluster.launcher.hosts: 3 nodes do not share cluster.workers (4) evenly"),
        ({"hosts": ["localhost", "localhost"]}, "cluster.launcher.hosts: 'localhost' is named twice"),
        ({"hosts": ["localhost:2", "127.0.0.1"]}, "cluster.launcher.hosts: give slots for all hosts or for none"),
        ({"hosts": ["localhost:2", "127.0.0.1:1"]}, "cluster.launcher.hosts: their slots are 3, cluster.workers is 4"),
        (
            {"hosts": ["localhost:3", "127.0.0.1:1"], "launcher": "impi"},
            "cluster.launcher.hosts: impi takes as many slots on every host (given 3, 1)",
        ),
        ({"hosts": HOSTS, "node_rank": 1}, "cluster.launcher.node_rank: is for cluster.launcher.no_ssh"),
        ({"hosts": HOSTS, "no_ssh": True, "node_rank": 2}, "cluster.launcher.node_rank: 2 of 2 hosts, counted from 0"),
        ({"no_ssh": True}, "cluster.launcher.hosts: name all hosts"),
        ({"launcher": "mpich"}, "cluster.launcher.launcher: "),
        ({"port": 80}, "cluster.launcher.port: "),
        ({"workers": {"min": 1, "max": 4}}, "cluster.workers: 1 to 4 is for Ray; deepspeed starts a fixed number"),
        ({"gpus": 1, "env": {"CUDA_VISIBLE_DEVICES": "0,1"}}, "CUDA_VISIBLE_DEVICES: 0,1 are fewer devices than"),
        ({"gpus": 1, "env": {"CUDA_VISIBLE_DEVICES": "GPU-1"}}, "CUDA_VISIBLE_DEVICES: DeepSpeed takes numbers"),
    ],
)
def test_what_cannot_be_started_is_refused(options: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        plan(**options)
    assert str(refused.value).startswith(said)


def test_the_way_to_the_hosts_has_to_be_installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepspeed").write_text("#!/bin/sh\n")
    (tmp_path / "deepspeed").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    job = parse({"name": "one", "cluster": {"launcher": {"name": "deepspeed", "hosts": HOSTS}}})
    with pytest.raises(JobError, match=r"^cluster\.launcher: pdsh is not installed here; install pdsh, or take"):
        plan_of(job, {})


def test_a_host_that_ssh_does_not_reach_is_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in {
        "deepspeed": "touch started",
        "pdsh": "",
        "ssh": "echo Permission denied. >&2; exit 255",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    words = ["launch", "quickstart", "--on", "deepspeed", "cluster.launcher.hosts=[localhost]"]
    done = CliRunner().invoke(cli, words)
    said = "cluster.launcher.hosts: localhost is not reached by ssh without a password: Permission denied."
    assert str(done.exception) == said and not (tmp_path / "started").exists()
    (tmp_path / "ssh").write_text("#!/bin/sh\n")
    assert CliRunner().invoke(cli, words).exit_code == 0 and (tmp_path / "started").exists()


@needs_deepspeed
def test_deepspeed_reads_the_hostfiles() -> None:
    script = "import sys; from deepspeed.launcher.runner import _parse_hostfile as p; print(dict(p(sys.stdin)))"

    def parsed(text: str) -> str:
        done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, timeout=100)
        return done.stdout.splitlines()[-1]

    kept = (REPOSITORY / "cluster_configs/deepspeed/hostfile").read_text()
    assert kept.endswith(hostfile({"node0": 4, "node1": 4}))
    assert parsed(kept) == str({"node0": 4, "node1": 4})


@pytest.mark.parametrize("stage", [0, 1])
def test_the_jsons_leave_to_the_job_what_is_the_jobs(stage: int) -> None:
    job = parse({"name": "one", "train": {"batch_size": 3, "accumulate": 2, "clip": 0.5, "precision": "bf16"}})
    told = merged(job, stage, settings(str(REPOSITORY / f"cluster_configs/deepspeed/zero{stage}.json")), 2, 9)
    assert (told["zero_optimization"]["stage"], told["train_micro_batch_size_per_gpu"]) == (stage, 3)
    assert (told["gradient_clipping"], told["bf16"]) == (0.5, {"enabled": True})


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_ranks_train_as_those_of_torchrun_do(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    losses = {}
    for name in ("deepspeed", "torchrun"):
        more = (f"name={name}", "exchange.regime=sparse")
        code, _, err = desk.call("sparsetrain", "launch", "job.yaml", "--on", name, *more, timeout=180)
        assert code == 0, err
        assert json.loads((tmp_path / f"runs/{name}/launch.json").read_text())["size"] == 2
        losses[name] = desk.losses(name)
    assert losses["deepspeed"] == losses["torchrun"] and len(losses["torchrun"]) == 4
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_ranks_and_the_run_says_so(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    desk = Desk(tmp_path)
    more = ("model.name=slowly:Slow", "train.steps=400")
    process = desk.start("sparsetrain", "launch", "job.yaml", "--on", "deepspeed", *more)
    desk.wait_for_rows("tiny", process, patience=150)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert desk.left() == {}
    assert desk.run_json("tiny")["status"] == "interrupted"
    shutil.rmtree(desk.temporary)


# As pdsh does it, but here: the command once for each host, %n its number.
PDSH = """#!/bin/sh
while [ "$1" != -w ]; do shift; done
hosts=$2; shift 2
number=0; running=
for host in $(echo "$hosts" | tr , ' '); do
    sh -c "$(echo "$*" | sed "s/%n/$number/")" & running="$running $!"
    number=$((number + 1))
done
for one in $running; do wait "$one" || exit $?; done
"""


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("by", ["pdsh", "hand"])
def test_two_hosts_that_are_one_train_together(tmp_path: pathlib.Path, by: str) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, text in {"pdsh": PDSH, "ssh": "#!/bin/sh\nexit 0\n"}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path}/bin:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    hosts = ("cluster.launcher.hosts=[localhost,127.0.0.1]", "cluster.launcher.master=127.0.0.1")
    command = [sys.executable, "-m", "sparsetrain", "launch", "job.yaml", "--on", "deepspeed", *hosts]
    parts = (
        [[]] if by == "pdsh" else [["cluster.launcher.no_ssh=true", f"cluster.launcher.node_rank={n}"] for n in (0, 1)]
    )
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, *more],
                    cwd=tmp_path,
                    env={**desk.env(), "PATH": path},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for more in parts
        ]
        said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(parts), said
    assert "rank 0 of 2" in said[0] and desk.run_json("tiny")["status"] == "finished"
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
