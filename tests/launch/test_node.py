"""The agent of a node: what it reads of the allocation, and what it refuses."""

from __future__ import annotations

import pathlib
import socket
import stat

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse
from sparsetrain.launch.allocation import Allocation, from_slurm, places
from sparsetrain.launch.node import node_job
from sparsetrain.launch.ray_daemons import Daemons, DaemonsLost, answers, await_head, running

STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
}


@pytest.fixture
def scontrol(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scontrol that knows two hosts."""
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$3" = "node[1-2]" ] || { echo "Invalid hostlist: $3" >&2; exit 1; }\necho node1; echo node2\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def named(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Let every name have this address, or none."""

    def look_up(*words: object) -> list[tuple[object, ...]]:
        if address is None:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_what_a_task_sees(scontrol: None) -> None:
    found = from_slurm(STEP)
    assert (found.names, found.name, found.first, found.port) == (("node1", "node2"), "node2", False, 20_527)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID: not set in the environment; `sparsetrain node` is a task of srun"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS: 4 tasks on 2 nodes; one for each: srun --ntasks-per"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID: must be a number less than 2, the nodes (given '2')"),
        ({"SLURM_STEP_NODELIST": "x["}, "SLURM_STEP_NODELIST: scontrol show hostnames: Invalid hostlist: x["),
    ],
)
def test_what_makes_no_sense_is_refused(scontrol: None, changes: dict[str, str], said: str) -> None:
    with pytest.raises(JobError) as refused:
        from_slurm({**STEP, **changes})
    assert str(refused.value).startswith(said)


def test_a_loopback_is_never_the_meeting_point_of_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Allocation(names=("node1", "node2"), index=0, port=1)
    second = Allocation(names=("node1", "node2"), index=1, port=1)
    named(monkeypatch, "127.0.1.1")  # as Debian's /etc/hosts has it on node1
    with pytest.raises(JobError, match=r"^cluster\.interface: node1 is 127\.0\.1\.1 on itself"):
        first.own_address(None)
    with pytest.raises(JobError, match=r"^SLURM_STEP_NODELIST: node1, the job's first node, is 127\.0\.1\.1 on node2"):
        second.meeting_address()
    assert Allocation(names=("node1",), index=0, port=1).own_address(None) == "127.0.1.1"
    named(monkeypatch, None)
    with pytest.raises(JobError, match=r"^SLURM_STEP_NODELIST: node1, the job's first node, has no address here"):
        second.meeting_address()


def test_without_a_token_nothing_is_started(scontrol: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(JobError, match=r"^RAY_AUTH_TOKEN: not set in the environment; all nodes need the same one"):
        node_job(parse({"name": "one"}))


@pytest.mark.parametrize(
    ("workers", "spares", "nodes", "each"), [(4, 0, 2, 2), (5, 0, 2, 3), (4, 1, 2, 3), (1, 0, 3, 1)]
)
def test_every_node_has_room_for_its_share(workers: int, spares: int, nodes: int, each: int) -> None:
    assert (
        places(parse({"name": "one", "cluster": {"workers": workers}, "recovery": {"spares": spares}}), nodes) == each
    )


def test_a_head_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert answers(address)
        await_head(address, 1, lambda: None)
    assert not answers(address)
    with pytest.raises(JobError, match=r"^cluster\.start_timeout: Ray's head does not answer at .* after 0\.1 s"):
        await_head(address, 0.1, lambda: None)


def test_daemons_that_end_are_told_with_their_last_words(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons = Daemons(name="n", address="10.0.0.1", head="10.0.0.1:20000", leads=True, cpus=1, gpus=0)
    assert "--port=20000" in daemons.command() and not [word for word in daemons.command() if "oken" in word]
    monkeypatch.setattr(Daemons, "command", lambda self: ["sh", "-c", "echo no room; exit 3"])
    monkeypatch.setenv("RAY_TMPDIR", "")
    with running(daemons) as ray:
        ray.process.wait(20)
        with pytest.raises(DaemonsLost, match="ray start ended with exit code 3\nno room"):
            ray.check()
        assert ray.log.exists()
    assert not ray.log.parent.exists()
