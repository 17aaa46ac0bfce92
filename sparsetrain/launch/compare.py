"""The other side of a claim: the runs that a job is compared with, and the table at the end."""

from __future__ import annotations

import pathlib
from typing import Any

from sparsetrain.config import presets
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job, parse, to_tree


def against_jobs(job: Job, sources: tuple[str, ...]) -> list[Job]:
    """Return the jobs that run first: "dense" is this job without anything sparse, others are files or presets."""
    return [dense(job) if source == "dense" else load_job(source) for source in sources]


def dense(job: Job) -> Job:
    """Return the dense version of the job: every gradient whole at every step, and no masks."""
    return parse(dense_tree(to_tree(job)))


def dense_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the dense version of a job's tree, as presets.dense_baseline defines it where there is one."""
    define = getattr(presets, "dense_baseline", None)
    if define is not None:
        tree = define(tree)
    name = tree["name"] if tree["name"].endswith("-dense") else f"{tree['name']}-dense"
    return {**tree, "name": name, "exchange": {**tree["exchange"], "regime": "dense", "every": 1}, "masks": None}


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
