"""The verb `status`: how a run stands, from what its folder holds, its lock, and Slurm where it has the job."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.launch import elsewhere, slurm_job
from sparsetrain.launch.run import find_folder
from sparsetrain.track.console import clean, format_row
from sparsetrain.track.jsonl import tail
from sparsetrain.worker import existing, record

LAUNCH = "launch"
MOST = 10**15  # steps of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """`state`: pending (in Slurm's queue), running, lost (it ended without a word), finished, failed, interrupted.
    `job`: the number of the Slurm job that has not ended; `holder`: the process that trains; `hosts`: of its ranks;
    `handed`: who has it where that is a cluster whose folders are not here, `elsewhere` where that cannot be asked."""

    name: str
    folder: str
    state: str
    cause: str | None = None
    steps: int | None = None
    row: dict[str, Any] | None = None
    seconds_ago: float | None = None
    job: str | None = None
    holder: str | None = None
    hosts: tuple[str, ...] = ()
    handed: str | None = None

    @property
    def live(self) -> bool:
        """Return whether the run has not ended."""
        return self.state in ("pending", "running")

    def line(self) -> str:
        """Return the standing in a few lines for people."""
        last = self.row or {}
        of = f" of {self.steps}" if self.steps else ""
        lines = [f"{self.name}: {self.state}" + (f" ({self.cause})" if self.cause else "")]
        if last:
            lines.append(f"  {format_row(last).strip()}")
            lines.append(f"  step {int(last['train/step'])}{of}, written {self.seconds_ago or 0:.0f} s ago")
        if self.job:
            lines.append(f"  slurm job {self.job}; output {self.folder}/{LAUNCH}/{self.job}.out")
        if self.handed:
            lines.append(f"  {self.handed}; its folder is there")
        if self.live and self.holder:
            lines.append(f"  {self.holder}" + (f"; ranks on {', '.join(self.hosts)}" if self.hosts else ""))
        return "\n".join(clean(line) for line in [*lines, f"  {self.folder}"])


def show_standing(name: str, as_json: bool) -> None:
    """Print how a run stands. Raises JobError where there is none of this name."""
    found = standing(launched(name))
    tree = {**dataclasses.asdict(found), "row": record.finite(found.row)}
    print(json.dumps(tree, indent=2) if as_json else found.line())


def launched(name: str) -> pathlib.Path:
    """Return the folder of a run, also of one that waits in a queue. Raises JobError with the near names."""
    for folder in (pathlib.Path(name), pathlib.Path("runs") / name):
        if (folder / LAUNCH / "job.yaml").is_file():
            return folder.absolute()
    return find_folder(name)


def standing(folder: pathlib.Path) -> Standing:
    """Return how the run in this folder stands."""
    other: elsewhere.Handed | None = None
    told, number, holder = existing.status(folder), slurm_job.pending(folder / LAUNCH), record.holder(folder)
    state = str(told.get("status", "lost"))
    if holder:
        state = "running"
    elif number:
        state = "pending" if slurm_job.status(number)[0] != "RUNNING" else "running"
    elif not told and (other := elsewhere.handed(folder / LAUNCH)):
        state = other.state()
    elif state == "running":
        state = "lost"
    metrics = folder / "metrics.jsonl"
    rows = tail(metrics, 1)
    return Standing(
        name=folder.name,
        folder=str(folder),
        state=state,
        cause=_cause(told, state, other),
        steps=_steps(folder),
        row=rows[-1] if rows else None,
        seconds_ago=time.time() - metrics.stat().st_mtime if rows else None,
        job=number or None,
        holder=holder,
        hosts=_hosts(folder),
        handed=other.line() if other else None,
    )


def _cause(told: dict[str, Any], state: str, other: elsewhere.Handed | None) -> str | None:
    if state == "lost" and other:
        return "nobody there knows it"
    if state == "lost":
        return "its processes are gone, or cannot be seen from here" if told else "it was never started"
    cause = told.get("cause") if state in ("failed", "interrupted") else None
    return None if cause is None else str(cause)


def _steps(folder: pathlib.Path) -> int | None:
    """Return how many steps the job of the folder has, None where it does not say."""
    train = (existing.stored_tree(folder) or {}).get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if isinstance(steps, int) and not isinstance(steps, bool) and 0 < steps < MOST else None


def _hosts(folder: pathlib.Path) -> tuple[str, ...]:
    """Return the hosts of the ranks, where launch.json tells."""
    path = folder / "launch.json"
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return ()
        placed = json.loads(path.read_text(encoding="utf-8")).get("placed", [])
        return tuple(dict.fromkeys(str(rank["host"]) for rank in placed))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, JobError):
        return ()
