from __future__ import annotations

import os
import pathlib
import socket
import sys

import pytest

from sparsetrain.launch import supervisor
from sparsetrain.launch.ray_worker import RayWorker
from sparsetrain.launch.signals import kept


@pytest.fixture
def worker(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> RayWorker:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(tmp_path)
    with kept():  # a worker takes SIGTERM for itself
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


def test_polling_is_quicker_than_the_grace() -> None:
    assert supervisor.POLL < supervisor.GRACE < supervisor.ECHO_GRACE
