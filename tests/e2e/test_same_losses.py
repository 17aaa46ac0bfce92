"""One job file and one seed give the same losses however the ranks are started. Slurm's are in test_slurm.py and
test_slurm_ray.py, with the same settings."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Generator

import mpi_ranks
import pytest
from commands import REPOSITORY, Desk

JOB = (
    "train.steps=50",
    "train.clip=0",  # DeepSpeed's clipping rounds in another order, which fifty steps make visible
    "log.every=1",
    "train.evaluate_every=25",
    "exchange.bucket_elements=4096",
    "masks={method: rigl, every: 10}",
    "optimizer={name: sgd, learning_rate: 0.1}",
)
needs_mpi = pytest.mark.skipif(bool(mpi_ranks.missing()), reason=mpi_ranks.missing())
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
LAUNCH = ("sparsetrain", "launch", "job.yaml", "--on")
TORCHRUN = (*LAUNCH, "torchrun")
WAYS = {
    "ray": ("sparsetrain", "run", "job.yaml"),
    "ray-on-two-nodes": ("two_nodes_main", "job.yaml", "cluster.strategy=STRICT_SPREAD"),
    "mpi": pytest.param((*LAUNCH, "mpi"), marks=needs_mpi),
    "mpi-alone": pytest.param((*LAUNCH, "mpi", "cluster.transport=mpi"), marks=needs_mpi),
    "deepspeed": pytest.param((*TORCHRUN, "engine=deepspeed"), marks=needs_deepspeed),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Generator[Desk]:
    made = Desk(tmp_path_factory.mktemp("losses"))
    (made.folder / "two_nodes_main.py").write_text((REPOSITORY / "tests/e2e/two_nodes.py").read_text())
    yield made
    assert made.left() == {}


def losses(desk: Desk, name: str, *way: str) -> dict[int, list[float]]:
    """Return the losses of each step: in training, and where it is evaluated."""
    code, out, err = desk.call(*way, f"name={name}", *JOB, timeout=200)
    assert code == 0, out + err
    return read(desk.folder / "runs" / name)


def read(folder: pathlib.Path) -> dict[int, list[float]]:
    """Return the losses of each step of the run in a folder."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {int(r["train/step"]): [r[key] for key in ("train/loss", "eval/loss") if key in r] for r in rows}


@pytest.fixture(scope="module")
def reference(desk: Desk) -> dict[int, list[float]]:
    found = losses(desk, "torchrun", *TORCHRUN)
    assert list(found) == list(range(1, 51)) and len(found[50]) == 2 and found[50][0] < found[1][0] - 0.5
    return found


@pytest.mark.parametrize("way", list(WAYS.values()), ids=list(WAYS))
def test_fifty_steps_are_those_of_torchrun(
    desk: Desk, reference: dict[int, list[float]], way: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    assert losses(desk, request.node.callspec.id, *way) == reference
