"""`python -m sparsetrain.worker JOB [a.b=c ...]`: one rank under torchrun, or a run of a single process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.worker import existing, record, stored
from sparsetrain.worker.environment import Place, from_environment
from sparsetrain.worker.main import check_size
from sparsetrain.worker.session import Session

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
    stored.refuse(job, folder, fresh=False)
    who = f"rank {place.rank} on {place.node}"
    with record.held(folder) if place.rank == 0 else contextlib.nullcontext():
        if place.rank == 0:
            record.begin(job, folder, _plan(job.name, place))
        try:
            signal.signal(signal.SIGTERM, _stopped)
            result = Session(job, folder, say).run(place)
        except JobError as error:
            _end(folder, "failed", str(error))
            # Other ranks may not have found this mistake, so each that has says it.
            raise JobError(str(error) if place.size == 1 else f"{who}: {error}") from error
        except KeyboardInterrupt as error:
            _end(folder, "interrupted", str(error) or "SIGINT")
            return 130
        except Exception as error:
            cause = f"{who} failed: {type(error).__name__}: {error}"
            _end(folder, "failed", cause)
            print(f"{cause}\n{traceback.format_exc()}", file=sys.stderr)
            return 1
        if place.rank == 0:
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
        if rank == "0" or str(error).startswith("rank "):
            print(" ".join(str(error).split()), file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # threads of a broken process group would abort or hold an ordinary exit


def _plan(name: str, place: Place) -> dict[str, Any]:
    launcher = "torchrun" if LAUNCHER in os.environ else "process"
    return {"name": name, "launcher": launcher, "workers": place.size, **dataclasses.asdict(place)}


def _stopped(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _end(folder: pathlib.Path, state: str, cause: str) -> None:
    """Record how the run ended, on whichever rank knows it first: what others meet later is a consequence."""
    if existing.status(folder).get("status") == "running":
        record.end(folder, state, cause)


if __name__ == "__main__":
    main()
