"""What every test shares: quiet W&B, one thread, and no process left behind."""

import multiprocessing
import os
import pathlib
import shutil
import time

import hypothesis
import pytest
import torch
from commands import Desk

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
torch.set_num_threads(1)
# Ranks of tests are forked from a process that has imported what they need, torch and what an optimizer's first step
# imports above all: it takes seconds. Not modules of the tests: that process does not know where they are.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["sparsetrain.engine.rejoin", "torch._dynamo", "fsspec", "hypothesis", "pytest", "_pytest.pytester"]
)
# The time of one example says more about the machine than about the code.
hypothesis.settings.register_profile("sparsetrain", deadline=None)
hypothesis.settings.load_profile("sparsetrain")


SLOW = ("slow", "chaos", "netns", "slurm", "convergence")
# Seconds after which no slow test begins: continuous integration has half an hour for everything.
BUDGET = float(os.environ.get("SPARSETRAIN_TEST_SECONDS", "1200"))
BEGAN = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let slow tests come last: the more reasons to be slow, the later."""
    items.sort(key=lambda item: sum(item.get_closest_marker(name) is not None for name in SLOW))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip slow tests when the time is up."""
    if time.monotonic() - BEGAN > BUDGET and any(item.get_closest_marker(name) for name in SLOW):
        pytest.skip(f"{BUDGET:g} s are over (SPARSETRAIN_TEST_SECONDS)")


def children() -> dict[int, str]:
    """Return the live descendants of this process: pid -> command line."""
    parents, commands = {}, {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    found: dict[int, str] = {}
    wanted = {os.getpid()}
    while wanted:
        wanted = {pid for pid, parent in parents.items() if parent in wanted and pid not in found}
        found |= {pid: commands[pid] for pid in wanted}
    return found


@pytest.fixture
def desk(tmp_path):
    """Yield a folder with a small job, from which the command line is run; its temporary files go afterwards."""
    made = Desk(tmp_path)
    yield made
    shutil.rmtree(made.temporary)


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind():
    """Fail the session when a test left a process running; the resource tracker of multiprocessing is not ours."""
    before = set(children())
    yield
    deadline = time.monotonic() + 15
    left = None
    while left is None or time.monotonic() < deadline:
        left = {pid: c for pid, c in children().items() if pid not in before and "multiprocessing" not in c}
        if not left:
            return
        time.sleep(0.5)
    raise AssertionError(f"processes left behind: {left}")
