"""The run folder's own account of a run: job.yaml, launch.json, env.json and run.json."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import socket
import time
from collections.abc import Generator
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.files import write_whole
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_yaml
from sparsetrain.worker.existing import status

LOCK = "lock"
PACKAGES = ("sparsetrain", "torch", "ray", "numpy", "wandb")


def run_folder(job: Job) -> pathlib.Path:
    """Return the absolute path of the job's run folder: `log.folder`/`name`. Raises JobError for what is no path."""
    try:
        folder = pathlib.Path(job.log.folder).expanduser().absolute() / job.name
        folder.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"log.folder: cannot be used (given {job.log.folder[:60]!r}): {error}") from error
    return folder


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Generator[None]:
    """Own the run folder: nobody else can begin the same run meanwhile. Raises JobError when somebody has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise JobError(f"log.folder: cannot write {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise JobError(f"name: {folder} is being trained by {lock.read(100) or 'another process'}") from error
        except OSError:
            pass  # a file system without locks
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def holder(folder: pathlib.Path) -> str | None:
    """Return who owns the run folder now ("process 17 on node1"), None where nobody does."""
    path = folder / LOCK
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return None
        with path.open(encoding="utf-8", errors="replace") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read(200) or "another process"
    except OSError:  # there is none, or a file system without locks
        pass
    return None


def begin(job: Job, folder: pathlib.Path, plan: dict[str, Any]) -> None:
    """Make the folder and write what is known before the start. Raises JobError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = status(folder).get("attempts")
        attempts = before + 1 if isinstance(before, int) else 1
        write_json(
            folder / "run.json",
            {"name": job.name, "status": "running", "attempts": attempts, "began": time.time(), "pid": os.getpid()},
        )
        # After run.json: another rank must not see more steps beside an old "finished".
        write_whole(folder / "job.yaml", to_yaml(job))
        write_json(folder / "launch.json", plan)
        write_json(folder / "env.json", environment())
    except OSError as error:
        raise JobError(f"log.folder: cannot write {folder}: {error.strerror or error}") from error


def placed(folder: pathlib.Path, ranks: list[dict[str, Any]]) -> None:
    """Add to launch.json which rank runs where."""
    path = folder / "launch.json"
    with contextlib.suppress(OSError, ValueError):  # it only informs
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "placed": ranks})


def incident(folder: pathlib.Path, row: dict[str, Any]) -> None:
    """Add to run.json what was lost in the run and how it went on."""
    with contextlib.suppress(OSError):  # it only informs
        known = status(folder)
        write_json(folder / "run.json", {**known, "incidents": [*known.get("incidents", []), row]})


def end(
    folder: pathlib.Path,
    state: str,
    cause: str | None = None,
    result: dict[str, Any] | None = None,
    code: int | None = None,
) -> None:
    """Write how the run ended: "finished", "failed" or "interrupted", with its cause or its result, and the exit code
    of a rank whose launcher may have another one."""
    ended = {"status": state, "cause": cause, "code": code, "result": finite(result), "ended": time.time()}
    with contextlib.suppress(OSError):  # a full disk must not hide the cause, which is printed too
        write_json(folder / "run.json", {**status(folder), **ended})


def environment() -> dict[str, Any]:
    """Return the versions and the machine; no values of environment variables, which may be secrets."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def finite(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the result with None for numbers that JSON has no word for."""
    if result is None:
        return None
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file; readers see the old one or the new one, never a part."""
    write_whole(path, json.dumps(value, indent=2) + "\n")
