"""Four workers spread over a Ray cluster of two nodes that exists already."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import pytest
from commands import REPOSITORY, Desk

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_four_workers_on_two_nodes(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "two_nodes_main.py").write_text((REPOSITORY / "tests/e2e/two_nodes.py").read_text())
    wanted = ("job.yaml", "cluster.workers=4", "cluster.strategy=SPREAD", "train.steps=4", "--json")
    code, out, err = desk.call("two_nodes_main", *wanted, timeout=150)
    assert code == 0, err
    (run,) = json.loads(out[out.index("{\n") :])["runs"]
    assert (run["status"], run["result"]["steps"]) == ("finished", 4)
    placed = json.loads((tmp_path / "runs/tiny/launch.json").read_text())["placed"]
    assert [(item["rank"], item["local_rank"]) for item in placed] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    nodes = [item["node"] for item in placed]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
