"""Runs the command line for end-to-end tests, and finds every process that it started."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import uuid
from typing import Any

MARK = "SPARSETRAIN_TEST_MARK"
REPOSITORY = pathlib.Path(__file__).parent.parent

# Four steps a second at most: long enough to be hit in the middle.
SLOW_MODEL = """
import os, time
from sparsetrain.models.gpt import GPT

class Slow(GPT):
    calls = 0
    def loss(self, batch):
        self.calls += 1
        time.sleep(0.25)
        return super().loss(batch)

class Late(Slow):
    def loss(self, batch):
        if self.calls == 6 and os.environ["RANK"] == "1":
            raise ValueError("boom in step 6")
        return super().loss(batch)

class Boom(GPT):
    calls = 0
    def loss(self, batch):
        self.calls += 1
        if self.calls == 3 and os.environ["RANK"] == "1":
            raise ValueError(f"boom in step 3 at {time.time()}")
        return super().loss(batch)
"""

JOB = """
name: tiny
model: {name: gpt, layers: 1, width: 32, heads: 2, context: 32}
data: {name: text, path: text.txt, context: 32}
train: {steps: 8, batch_size: 4, evaluate_every: 4, evaluate_batches: 2}
exchange: {density: 0.1, dense_below: 64}
log: {every: 2, wandb: {mode: disabled}}
"""


@dataclasses.dataclass
class Desk:
    """A folder with a small job, and an environment whose mark all processes started from it inherit."""

    folder: pathlib.Path
    mark: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    temporary: pathlib.Path = dataclasses.field(default_factory=lambda: pathlib.Path(tempfile.mkdtemp(dir="/tmp")))

    def __post_init__(self) -> None:
        (self.folder / "job.yaml").write_text(JOB)
        (self.folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
        (self.folder / "slowly.py").write_text(SLOW_MODEL)

    def env(self) -> dict[str, str]:
        paths = [str(self.folder), str(REPOSITORY), str(REPOSITORY / "tests")]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "WANDB_"))}
        return {
            **clean,
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m ...` in a process group of its own, as a shell would."""
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def call(self, *arguments: str, timeout: float = 90) -> tuple[int, str, str]:
        """Return exit code, output and errors of `python -m ...`."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return process.returncode, out, err

    def processes(self) -> dict[int, str]:
        """Return the command lines of living processes that carry the mark, by pid."""
        found: dict[int, str] = {}
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def left(self, patience: float = 5) -> dict[int, str]:
        """Return the processes that are still there after some seconds of waiting for none."""
        deadline = time.monotonic() + patience
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def run_json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / "runs" / name / "run.json").read_text())

    def losses(self, name: str) -> list[float]:
        lines = (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["train/loss"] for line in lines]

    def wait_for_rows(self, name: str, process: subprocess.Popen[str], patience: float = 60) -> None:
        """Return when the run has written its first metrics."""
        path = self.folder / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + patience
        while not (path.is_file() and path.stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
