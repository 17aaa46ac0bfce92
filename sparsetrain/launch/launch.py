"""The verb `launch`: a job to whoever starts the workers, with everything shown before."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.files import write_whole
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_yaml
from sparsetrain.launch.attached import attached
from sparsetrain.launch.elsewhere import note
from sparsetrain.launch.launchers.remote import for_ranks
from sparsetrain.launch.launchers.request import Request
from sparsetrain.launch.plan import OURS, LaunchPlan, page
from sparsetrain.launch.run import Options, run_job, show_plan
from sparsetrain.launch.slurm_job import follow, pending, submit
from sparsetrain.worker import existing, record, stored

FOLDER = "launch"  # in the run folder


def settings(on: str | None, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return the overrides with the launcher that `--on` names. Raises JobError where they name one, too."""
    if on is None:
        return overrides
    if other := [word for word in overrides if word.startswith("cluster.launcher=")]:
        raise JobError(f"--on: {on}, and {other[0]} is given, too; allowed: one of them")
    return (f"cluster.launcher={on}", *overrides)


def plan_of(job: Job, env: Mapping[str, str], dry: bool = False, wait: bool = False) -> LaunchPlan:
    """Return what launching the job would start. Raises JobError."""
    folder = record.run_folder(job) / FOLDER
    request = Request(job=job, path=str(folder / "job.yaml"), folder=str(folder), env=env, dry=dry, wait=wait)
    plan = job.cluster.launcher.build().plan(request)
    assert isinstance(plan, LaunchPlan)
    return plan


def launch_job(job: Job, dry: bool, as_json: bool, wait: bool) -> int:
    """Start the job as `cluster.launcher` says, and return the exit code: that of what was started, 130 when it was
    stopped. What is only submitted, as with Slurm, `wait` follows to its end. `dry`: only show what would be started.

    A launcher may have more than `plan`: `ready` looks outside, before anything is written, and returns the plan to
    take; `follow` waits for what the plan's command, which has ended with `code`, has only handed over, and returns the
    exit code; `remote` says that the run's folder is elsewhere.
    """
    if job.cluster.launcher.name in OURS:
        return show_plan(job, Options(as_json=as_json)) if dry else run_job(job, Options(as_json=as_json))
    plan = plan_of(job, os.environ, dry, wait)
    if dry:
        print(json.dumps(plan.as_dict(), indent=2) if as_json else page(plan))
        return 0
    launcher, folder = job.cluster.launcher.build(), record.run_folder(job)
    here = not getattr(launcher, "remote", False)
    if here and _finished(job, folder):
        print(f"{job.name}: already finished ({folder})")
        return 0
    if hasattr(launcher, "ready"):
        plan = launcher.ready(plan)
    _write(plan, job, folder / FOLDER)
    if not here:
        note(folder / FOLDER, job, plan)
    print(plan.line(), file=sys.stderr if as_json else sys.stdout, flush=True)
    before = existing.status(folder) if here else {}
    if plan.launcher == "slurm":
        code = _queued(plan, folder / FOLDER, as_json, wait)
        return _meant(code, before, existing.status(folder))
    # What shows a run of another cluster until its end can be asked, and told, by the lock of the folder here.
    stays = not here and not hasattr(launcher, "follow")
    with record.held(folder) if stays else contextlib.nullcontext():
        code = attached(plan, as_json)
    said = existing.status(folder) if here else {}
    if code and said.get("status") == "running":  # killed before it could say so
        record.end(folder, "failed", f"{plan.launcher} ended with exit code {code}")
    if wait and hasattr(launcher, "follow"):
        return int(launcher.follow(plan, as_json, code))
    return _meant(code, before, said)


def _meant(code: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Return the exit code that the rank had which knows how the run has ended, where its launcher has another one:
    torchrun makes a 1 of all, and of ranks that are ended after a failure the signal counts. `before` and `after`: what
    run.json said before and says now."""
    known = None if after == before else after.get("code")
    return known if code and known and isinstance(known, int) else code


def _finished(job: Job, folder: pathlib.Path) -> bool:
    """Return whether there is nothing left to do. Raises JobError for a folder that is not this job's, or that Slurm is
    at work on."""
    other = existing.next_name(folder)
    if existing.finished(job, folder, f"give a new name (name={other}), or move {folder} aside"):
        return True
    stored.refuse(job, folder, fresh=False)
    if job.cluster.launcher.name == "slurm" and (number := pending(folder / FOLDER)):
        raise JobError(
            f"name: {job.name} is job {number} of Slurm already; give a new name (name={other}),"
            f" or end that one with: scancel {number}"
        )
    return False


def _queued(plan: LaunchPlan, folder: pathlib.Path, as_json: bool, wait: bool) -> int:
    """Submit the plan to Slurm and return the exit code, which is the job's where it is waited for."""
    number = submit(plan, folder)
    output = folder / f"{number}.out"
    if as_json:
        print(json.dumps({"job": number, "output": str(output)}), flush=True)
    else:
        print(f"slurm job {number}; output {output}; stop it with: scancel {number}", flush=True)
    return follow(number, output, sys.stderr if as_json else sys.stdout) if wait else 0


def _write(plan: LaunchPlan, job: Job, folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "job.yaml", to_yaml(for_ranks(job)))
        for file in plan.files:
            write_whole(pathlib.Path(file.path), file.text)
    except OSError as error:
        raise JobError(f"log.folder: cannot write {folder}: {error.strerror or error}") from error
