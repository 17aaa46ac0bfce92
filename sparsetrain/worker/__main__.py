"""`python -m sparsetrain.worker JOB [a.b=c ...]`: one rank under torchrun, or a run of a single process."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.worker import existing, record
from sparsetrain.worker.environment import Place, from_environment
from sparsetrain.worker.main import check_size, run_worker

LAUNCHER = "TORCHELASTIC_RUN_ID"  # torchrun sets it


def run(arguments: list[str], say: Callable[[str], None]) -> int:
    """Train as one rank and return the exit code: 0, 1 (failed). Raises JobError for a user's mistake."""
    if not arguments:
        raise JobError("job: is missing; usage: python -m sparsetrain.worker JOB [a.b=c ...]")
    place = from_environment(os.environ)
    job = check_size(load_job(arguments[0], tuple(arguments[1:])), place)
    folder = record.run_folder(job)
    if existing.finished(job, folder):
        say(f"{job.name}: already finished ({folder})")
        return 0
    first = place.rank == 0
    if first:
        record.begin(job, folder, _plan(job.name, place))
    try:
        result = run_worker(job, place, folder, say)
    except JobError as error:
        _end(first, folder, "failed", str(error))
        raise
    except KeyboardInterrupt:
        _end(first, folder, "interrupted", "SIGINT")
        return 130
    except Exception as error:
        cause = f"rank {place.rank} on {place.node} failed: {type(error).__name__}: {error}"
        _end(first, folder, "failed", cause)
        print(f"{cause}\n{traceback.format_exc()}", file=sys.stderr)
        return 1
    if first:
        record.end(folder, "finished", result=result)
        say(f"run folder  {folder}")
    return 0


def main() -> None:
    """Run this process's rank and exit; only rank 0 speaks, except about its own failure."""
    rank = os.environ.get("RANK", "0")

    def say(line: str) -> None:
        if rank == "0":
            print(line, flush=True)

    try:
        code = run(sys.argv[1:], say)
    except JobError as error:
        if rank == "0":
            print(" ".join(str(error).split()), file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # threads of a broken process group would abort or hold an ordinary exit


def _plan(name: str, place: Place) -> dict[str, Any]:
    launcher = "torchrun" if LAUNCHER in os.environ else "process"
    return {"name": name, "launcher": launcher, "workers": place.size, **dataclasses.asdict(place)}


def _end(first: bool, folder: pathlib.Path, state: str, cause: str) -> None:
    if first:
        record.end(folder, state, cause)


if __name__ == "__main__":
    main()
