"""The other side of a claim: the runs that a job is compared with, and the table at the end."""

from __future__ import annotations

import pathlib

from sparsetrain.config.job import Job
from sparsetrain.config.load import apply_overrides, load_job, parse, to_tree


def against_jobs(job: Job, sources: tuple[str, ...]) -> list[Job]:
    """Return the jobs that run first: "dense" is this job without anything sparse, others are files or presets."""
    return [dense(job) if source == "dense" else load_job(source) for source in sources]


def dense(job: Job) -> Job:
    """Return the dense version of the job: whole gradients at every step, no masks, and what `baseline` sets."""
    tree = to_tree(job)
    name = job.name if job.name.endswith("-dense") else f"{job.name}-dense"
    exchange = {**tree["exchange"], "regime": "dense", "every": 1, "values": "fp32", "error_feedback": "none"}
    return parse(apply_overrides({**tree, "name": name, "exchange": exchange, "masks": None}, job.baseline))


def table(folders: list[pathlib.Path]) -> str:
    """Return the comparison of finished runs as text."""
    from sparsetrain.track.compare import compare

    return compare(folders)


def write_report(folders: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Write the report of finished runs and return where it lies."""
    from sparsetrain.track.report import write_report as write

    return write(folders, out)


def outcome_lines(folders: list[pathlib.Path], report: pathlib.Path | None) -> list[str]:
    """Return what a finished command says: the table, and where report, W&B files and run folder are."""
    lines = ["", table(folders), ""]
    if report:
        lines.append(f"report      {report}")
    lines += [f"W&B         {folder / 'wandb'}" for folder in folders if (folder / "wandb").is_dir()]
    return [*lines, *(f"run folder  {folder}" for folder in folders)]
