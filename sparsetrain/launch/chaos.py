"""`sparsetrain chaos`: the same job many times, each time with other faults, and whether it came out right."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.launch.monkey import FAULTS, Monkey, plan, plan_every
from sparsetrain.launch.ray_cluster import children, ray_cluster
from sparsetrain.launch.ray_driver import ranked
from sparsetrain.launch.ray_group import own_node, ray_group
from sparsetrain.launch.run import FAILED, STOPPED, Options, run_one
from sparsetrain.launch.show import silent
from sparsetrain.launch.signals import Stopped, listening
from sparsetrain.launch.supervisor import Progress, Supervisor
from sparsetrain.registry import nearest
from sparsetrain.track.jsonl import read
from sparsetrain.worker import record

SPREAD = 4.0  # standard deviations of undisturbed losses within which a disturbed one is
LEAST = 0.02  # of the loss, at least
LONG = 24 * 3600.0  # seconds that an undisturbed run may take
TEARDOWN = 10.0  # seconds that workers of a run that has ended may live on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line says: how many runs with how many faults of which kinds, after how many without any.
    `every`: a fault each so many seconds instead, 0: `count` of them. `restart`: each run also without recovery in
    memory."""

    seed: int
    faults: tuple[str, ...]
    runs: int
    count: int
    undisturbed: int
    every: float = 0.0
    restart: bool = False


@dataclasses.dataclass(kw_only=True)
class Row:
    """One run: what was done to it and what came of it; `wrong` is empty where all is well. `seconds` go from the first
    step to the end; `goodput` is what an undisturbed run takes, over that."""

    name: str
    faults: list[str]
    status: str
    seconds: float
    recovered: list[float]
    sources: list[str]
    loss: float | None
    goodput: float = 1.0
    wrong: str = ""


def run_chaos(source: str, overrides: tuple[str, ...], plan: Plan, as_json: bool) -> int:
    """Run everything, print the table, and return 0 when every run came out right, 1 when one did not."""
    job = _small(load_job(source, overrides))
    wrong = [kind for kind in plan.faults if kind not in FAULTS]
    if wrong:
        near = nearest(wrong[0], list(FAULTS))
        raise JobError(f"--faults: {wrong[0]}: no such fault; allowed: {', '.join(FAULTS)}{near}")
    if plan.every and plan.count > 1:
        raise JobError(f"--count {plan.count}: a fault comes every {plan.every:g} s already; allowed: one of the two")
    stream = sys.stderr if as_json else sys.stdout
    rows: list[Row] = []
    disturbed = plan.runs * (2 if plan.restart else 1)
    print(f"{plan.undisturbed} runs without faults, then {disturbed} with: {', '.join(plan.faults)}", file=stream)
    with listening() as stop, ray_cluster(job.cluster, job.recovery.spares):
        calm: list[Row] = []
        for number in range(plan.undisturbed):
            calm.append(_one(job, f"calm{number}", Monkey([]), stop.check, job.seed + number, LONG))
            print(_line(calm[-1]), file=stream, flush=True)
            if calm[-1].status != "finished":
                return STOPPED if calm[-1].status == "interrupted" else FAILED
        for number in range(plan.runs):
            if stop.name:
                break
            for memory in (True, False) if plan.restart else (job.recovery.memory,):
                if not stop.name:
                    rows.append(_disturbed(job, number, plan, calm, stop.check, memory))
                    print(_line(rows[-1]), file=stream, flush=True)
                    if rows[-1].status == "interrupted":  # the signal came to the run
                        stop.name = "interrupted"
    print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) if as_json else summary(rows))
    return STOPPED if stop.name else int(any(row.wrong for row in rows))


def _small(job: Job) -> Job:
    """Return the job with a folder for all these runs of its own."""
    folder = str(pathlib.Path(job.log.folder) / f"{job.name}-chaos")
    return dataclasses.replace(job, log=dataclasses.replace(job.log, folder=folder))


def _disturbed(job: Job, number: int, told: Plan, calm: Sequence[Row], check: Any, memory: bool) -> Row:
    seconds = statistics.median(row.seconds for row in calm)
    most = int(2 * seconds / told.every) if told.every else told.count
    if told.every:
        faults = plan_every(told.seed, number, told.faults, told.every, most)
    else:
        faults = plan(told.seed, number, told.faults, told.count, seconds)
    bound = 60.0 + 4 * seconds + 2 * (most + 1) * (job.cluster.collective_timeout + 20.0)
    job = dataclasses.replace(job, recovery=dataclasses.replace(job.recovery, memory=memory))
    name = f"run{number:04d}" if memory or not told.restart else f"run{number:04d}-restart"
    row = _one(job, name, Monkey(faults), check, job.seed, bound)
    row.goodput = seconds / row.seconds
    if not row.wrong and row.loss is not None:
        losses = [each.loss for each in calm if each.loss is not None]
        middle = statistics.mean(losses)
        spread = max(SPREAD * (statistics.stdev(losses) if len(losses) > 1 else 0.0), LEAST * middle)
        if abs(row.loss - middle) > spread:
            row.wrong = f"loss {row.loss:.4f} is not within {middle:.4f} +- {spread:.4f}"
    return row


def _one(job: Job, name: str, monkey: Monkey, check: Any, seed: int, bound: float) -> Row:
    """Run the job once under a monkey. The run is stopped, and counts as hung, after `bound` seconds."""
    job = dataclasses.replace(job, name=name, seed=seed)
    began = time.monotonic()
    ended_at = 0.0
    hung = False

    def start(job: Job, folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
        nonlocal ended_at
        with ray_group(job, folder, progress.check) as group:
            here = own_node()

            def look() -> None:
                nonlocal hung
                check()
                progress.check()
                if time.monotonic() - began > bound:
                    hung = True
                    raise Stopped("takes too long")
                monkey.look()

            watched = dataclasses.replace(progress, check=look)
            monkey.supervisor = Supervisor(job, folder, group, watched, lambda members: ranked(members, here))
            result = monkey.supervisor.run()
            ended_at = time.monotonic()
            return result

    ended = run_one(job, Options(as_json=True, fresh=True), start=start, shown=silent)
    seconds = (ended_at or time.monotonic()) - (monkey.began or began)
    incidents = monkey.supervisor.incidents if monkey.supervisor is not None else []
    row = Row(
        name=name,
        faults=[str(done) for done in monkey.done],
        status="hung" if hung else ended.status,
        seconds=seconds,
        recovered=[each["seconds"] for each in incidents],
        sources=[each["from"] for each in incidents],
        loss=(ended.result or {}).get("eval/loss"),
    )
    row.wrong = _wrong(job, ended.folder, ended.result, row.status) or _left()
    return row


def _wrong(job: Job, folder: pathlib.Path, result: dict[str, Any] | None, status: str) -> str:
    """Return what is not as it must be, in words. That replicas are equal was compared at the last evaluation."""
    if status != "finished" or result is None:
        return f"{status}: {record.status(folder).get('cause')}"
    rows = read(folder / "metrics.jsonl")
    steps = [row["train/step"] for row in rows]
    due = {*range(job.log.every, job.train.steps + 1, job.log.every), job.train.steps}
    if steps != sorted(set(steps)) or not due <= set(steps):
        return f"rows of steps {steps[:3]} ... {steps[-1:]}, without {sorted(due - set(steps))[:3]}"
    workers = job.cluster.workers
    samples = job.train.steps * job.train.batch_size * job.train.accumulate * workers.max
    if job.train.resize == "constant" and rows[-1]["train/samples"] != samples:
        return f"{rows[-1]['train/samples']} samples, not {samples}"
    unfinished = [path.name for path in folder.rglob("*") if path.name.endswith((".part", ".unfinished"))]
    return f"left behind: {', '.join(unfinished)}" if unfinished else ""


def _left() -> str:
    """Return which workers of this process's own cluster live on, in words."""
    deadline = time.monotonic() + TEARDOWN
    left: list[int] = []
    while time.monotonic() < deadline:
        left = []
        for process in children():
            with contextlib.suppress(Exception):  # gone meanwhile
                if process.cmdline()[0].startswith("ray::RayWorker"):
                    left.append(process.pid)
        if not left:
            return ""
        time.sleep(0.2)
    return f"workers left: {left}"


def _line(row: Row) -> str:
    faults = ", ".join(row.faults) or "nothing"
    loss = "-" if row.loss is None else f"{row.loss:.4f}"
    back = ", ".join(f"{seconds:.1f} s" for seconds in row.recovered) or "-"
    figures = f"recovered in {back}  goodput {row.goodput:.2f}  loss {loss}"
    return f"{row.name}  {faults}  {row.status}  {figures}  {row.wrong or 'ok'}"


def summary(rows: Sequence[Row]) -> str:
    """Return the table: by kind of fault how many runs, how many right, and how long recoveries took."""
    lines = [f"{'fault':8} {'done':>5} {'runs':>5} {'right':>6} {'recovered in s, median':>23} {'most':>6}"]
    for kind in FAULTS:
        with_it = [row for row in rows if any(fault.startswith(kind) for fault in row.faults)]
        if not with_it:
            continue
        done = sum(fault.startswith(kind) for row in with_it for fault in row.faults)
        alone = [s for row in with_it for s in row.recovered if all(fault.startswith(kind) for fault in row.faults)]
        middle = f"{statistics.median(alone):.1f}" if alone else "-"
        most = f"{max(alone):.1f}" if alone else "-"
        right = sum(not row.wrong for row in with_it)
        lines.append(f"{kind:8} {done:5} {len(with_it):5} {right:6} {middle:>23} {most:>6}")
    for how, restart in (("in memory", False), ("from checkpoints alone", True)):
        if good := [row.goodput for row in rows if row.name.endswith("-restart") == restart]:
            lines.append(f"goodput, recovery {how}: median {statistics.median(good):.2f}, least {min(good):.2f}")
    hung = sum(row.status == "hung" for row in rows)
    left = sum("left" in row.wrong for row in rows)
    wrong = sum(bool(row.wrong) for row in rows) - hung - left
    lines.append(f"{len(rows)} runs: {hung} hung, {left} left something behind, {wrong} otherwise wrong")
    return "\n".join(lines)
