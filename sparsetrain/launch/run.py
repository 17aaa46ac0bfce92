"""The verbs that train: check the folder, launch, show, and say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job, parse, to_tree
from sparsetrain.launch.compare import against_jobs, outcome_lines, table, write_report
from sparsetrain.launch.failure import RunFailed
from sparsetrain.launch.plan import LaunchPlan, ray_plan, terms
from sparsetrain.launch.ray_driver import run_on_ray
from sparsetrain.launch.show import progress
from sparsetrain.launch.signals import Stop, Stopped, listening, noticing
from sparsetrain.launch.supervisor import Progress
from sparsetrain.worker import existing, record, stored
from sparsetrain.worker.notice import FAILED, Notice, last_words, limit_words

Start = Callable[[Job, pathlib.Path, Progress], dict[str, Any]]
Shown = Callable[[Job, TextIO, Stop], contextlib.AbstractContextManager[Progress]]

STOPPED = 130
SHOWN = 20  # names of runs in an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside the job. `against`: jobs, or "dense", that run first."""

    fresh: bool = False
    as_json: bool = False
    against: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How one run ended; `code` is the exit code."""

    job: Job
    folder: pathlib.Path
    status: str
    code: int = 0
    result: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints of this run."""
        return {
            "name": self.job.name,
            "status": self.status,
            "folder": str(self.folder),
            "result": record.finite(self.result),
        }


def run_job(job: Job, options: Options | None = None, shown: Shown = progress) -> int:
    """Run the job, after the ones it is compared with, and return the exit code: 0, 1 (failed), 75 (saved, to go on
    later, after SIGUSR1, its time limit, or since what `shown` gives says so) or 130 (stopped)."""
    options = options or Options()
    jobs = [*against_jobs(job, options.against), job]
    refuse_same(jobs)
    for each in jobs:
        folder = record.run_folder(each)
        # Refuse before the first one starts.
        if options.fresh or not existing.finished(each, folder):
            refuse_missing(each)
            stored.refuse(each, folder, options.fresh)
    ended: list[Ended] = []
    for each in jobs:
        ended.append(run_one(each, options, shown=shown))
        if ended[-1].code:
            break
    _conclude(ended, options)
    return ended[-1].code


def resume_run(name: str, overrides: tuple[str, ...], options: Options) -> int:
    """Continue the run called `name` (or the run folder `name`) and return the exit code."""
    folder = find_folder(name)
    job = load_job(str(folder / "job.yaml"), (*overrides, "checkpoint.resume=true"))
    if record.run_folder(job) != folder:
        # The folder was moved, or the run was started from elsewhere: go on where it lies.
        if job.checkpoint.url is not None and folder.name != job.name:
            raise JobError(f"name: {folder} was called {job.name}, and so are its checkpoints in {job.checkpoint.url}")
        tree = to_tree(job)
        job = parse({**tree, "name": folder.name, "log": {**tree["log"], "folder": str(folder.parent)}})
    return run_job(job, options)


def show_plan(job: Job, options: Options) -> int:
    """Print what would be started and start nothing; the job itself is checked already."""
    jobs = [*against_jobs(job, options.against), job]
    refuse_same(jobs)
    plans = []
    for each in jobs:
        folder = record.run_folder(each)
        done = not options.fresh and existing.finished(each, folder)
        if not done:
            refuse_missing(each)
        plans.append((ray_plan(each), {"folder": str(folder), "finished": done}))
    if options.as_json:
        print(
            json.dumps({"plans": [{**plan.as_dict(), **more} for plan, more in plans], "job": to_tree(job)}, indent=2)
        )
        return 0
    for plan, more in plans:
        print("\n".join((plan.line(), *terms(plan))))
        print(f"  folder {more['folder']}{' (already finished)' if more['finished'] else ''}")
    return 0


def report_runs(names: tuple[str, ...], out: str | None) -> None:
    """Print the comparison of runs and write their report."""
    folders = [find_folder(name) for name in names]
    target = pathlib.Path(out) if out else folders[-1] / "report"
    if target.exists() and not target.is_dir():
        raise JobError(f"--out: {target} is no folder; allowed: one, or a name that is free")
    print(table(folders))
    try:
        print(f"report: {write_report(folders, target)}")
    except OSError as error:
        raise JobError(f"--out: cannot write {target}: {error.strerror}") from error


def find_folder(name: str) -> pathlib.Path:
    """Return the run folder of a name (under runs/) or a path. Raises JobError with the near names."""
    from sparsetrain.registry import nearest

    runs = pathlib.Path("runs")
    for folder in (pathlib.Path(name), runs / name):
        if (folder / "job.yaml").is_file():
            return folder.absolute()
    names = sorted(path.parent.name for path in runs.glob("*/job.yaml"))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise JobError(f"{name}: no such run; in runs/: {', '.join(names[:SHOWN]) or 'none'}{more}{nearest(name, names)}")


def refuse_same(jobs: list[Job]) -> None:
    """Raise JobError where two jobs would have one folder."""
    folders = [record.run_folder(job) for job in jobs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise JobError(f"name: {jobs[number].name!r} is the name of two of these runs; give one of them another")


def refuse_missing(job: Job) -> None:
    """Raise JobError where the workers will be on this machine and the job's data is not, as far as its class can look
    (`look(config)`)."""
    look = getattr(registry.load("data", job.data.name), "look", None)
    if look is not None and job.cluster.address is None:
        look(job.data.config)


def run_one(job: Job, options: Options, start: Start = run_on_ray, shown: Shown = progress) -> Ended:
    """Run one job to its end, unless it is finished already; `start` runs it, `shown` says where its progress goes."""
    plan = ray_plan(job)  # before there is a folder: what is refused leaves nothing
    folder = record.run_folder(job)
    stream = sys.stderr if options.as_json else sys.stdout
    if options.fresh and folder.exists():
        with record.held(folder):
            print(f"moved {folder} to {existing.move_aside(folder)}", file=stream)
    if existing.finished(job, folder):
        print(f"{job.name}: already finished ({folder})", file=stream)
        return Ended(job=job, folder=folder, status="finished", result=existing.status(folder).get("result"))
    with record.held(folder):
        return _train(job, plan, folder, stream, start, shown)


def _train(job: Job, plan: LaunchPlan, folder: pathlib.Path, stream: TextIO, start: Start, shown: Shown) -> Ended:
    """Run one job; failures are printed here, once."""
    record.begin(job, folder, plan.as_dict())
    try:
        with listening() as stop, noticing() as notice, shown(job, stream, stop) as told:
            told.line(plan.line())
            result = start(job, folder, within(job.cluster.time_limit, notice, told))
    except JobError as error:
        record.end(folder, "failed", str(error))
        raise
    except RunFailed as error:
        record.end(folder, "failed", str(error))
        print(f"{error}\n{error.failure.traceback}".rstrip(), file=sys.stderr)
        print(f"run folder: {folder} (logs/ has what every rank printed)", file=sys.stderr)
        return Ended(job=job, folder=folder, status="failed", code=FAILED)
    except (KeyboardInterrupt, SystemExit) as error:  # SystemExit: SIGTERM while Ray starts
        record.end(folder, "interrupted", str(error) if isinstance(error, Stopped) else type(error).__name__)
        print(f"{job.name}: interrupted; `sparsetrain resume {folder}` continues it", file=sys.stderr)
        return Ended(job=job, folder=folder, status="interrupted", code=STOPPED)
    except BaseException as error:
        record.end(folder, "failed", f"{type(error).__name__}: {error}")
        raise
    if result.get("paused"):
        status, code, words = last_words(job.name, result, result["cause"])
        record.end(folder, status, result["cause"])
        print(words, file=stream, flush=True)
        return Ended(job=job, folder=folder, status=status, code=code)
    record.end(folder, "finished", result=result)
    return Ended(job=job, folder=folder, status="finished", result=result)


def within(limit: float | None, notice: Notice, told: Progress) -> Progress:
    """Return where progress goes, and that the run is to be saved and left `limit` seconds from now, or at a notice."""
    end, words = time.monotonic() + (math.inf if limit is None else limit), limit_words(limit or 0.0)

    def leaves() -> str:
        return told.leaves() or notice.cause or (words if time.monotonic() > end else "")

    return dataclasses.replace(told, leaves=leaves)


def _conclude(ended: list[Ended], options: Options) -> None:
    """Print the table, where things lie, and for `--json` the one document."""
    done = [each.folder for each in ended if each.code == 0]
    report = write_report(done, done[-1] / "report") if done and not ended[-1].code else None
    if options.as_json:
        runs = [each.as_dict() for each in ended]
        print(json.dumps({"runs": runs, "report": str(report) if report else None}, indent=2))
    elif done and not ended[-1].code:
        print("\n".join(outcome_lines(done, report)))
