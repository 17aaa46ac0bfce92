from __future__ import annotations

import os
import pathlib
import socket
import sys

import pytest

from sparsetrain.launch import supervisor
from sparsetrain.launch.ray_driver import copy_back
from sparsetrain.launch.ray_group import Member
from sparsetrain.launch.ray_worker import RayWorker


@pytest.fixture
def worker(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> RayWorker:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(tmp_path)
    return RayWorker({"SPARSETRAIN_X": "1"}, [str(tmp_path / "modules")], str(tmp_path))


def test_a_worker_takes_over_variables_paths_and_folder(worker: RayWorker, tmp_path: pathlib.Path) -> None:
    assert os.environ["SPARSETRAIN_X"] == "1"
    assert str(tmp_path / "modules") in sys.path
    assert worker.poll() == ([], [])


def test_the_port_is_held_on_one_address_only(worker: RayWorker) -> None:
    port = worker.hold_port("127.0.0.1")
    assert worker.listener is not None and worker.listener.getsockname() == ("127.0.0.1", port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    worker.listener.close()


def test_checkpoints_stay_on_their_node(worker: RayWorker, tmp_path: pathlib.Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "checkpoints" / "model").write_text("big")
    (tmp_path / "run" / "logs" / "rank00000.log").write_text("small")
    assert worker.files(str(tmp_path / "run")) == {"logs/rank00000.log": b"small"}


MEMBER = Member(actor=None, node="n", address="a", host="h", pid=1, shared=False)


class Answers:
    """Stands for a group whose first member has these files."""

    def __init__(self, answer: dict[str, bytes]) -> None:
        self.answer = answer

    def files(self, member: Member) -> dict[str, bytes]:
        return self.answer


def test_files_come_back(tmp_path: pathlib.Path) -> None:
    copy_back(MEMBER, Answers({"logs/a.log": b"x"}), tmp_path)
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../out", "/out", "logs/../../out"])
def test_a_worker_cannot_write_outside_the_run_folder(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(ValueError, match="outside the run folder"):
        copy_back(MEMBER, Answers({name: b"x"}), tmp_path / "run")
    assert not (tmp_path / "out").exists()


def test_polling_is_quicker_than_the_grace() -> None:
    assert supervisor.POLL < supervisor.GRACE < supervisor.ECHO_GRACE
