"""`sparsetrain checkpoints`: what a run has saved, whether it is whole, and the room that it takes."""

from __future__ import annotations

import json
import pathlib
import time

from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.launch.run import find_folder
from sparsetrain.worker import stored

DAMAGED = 1
TITLES = ("step", "written", "MB", "workers", "eval loss", "complete")


def list_saved(run: str, as_json: bool) -> None:
    """Print the checkpoints of a run, complete or not."""
    rows = stored.rows(*_run(run))
    if as_json:
        print(json.dumps({"checkpoints": rows}, indent=2))
        return
    if not rows:
        print(f"{run}: no checkpoints")
        return
    lines = [TITLES]
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["when"])) if row["when"] else "-"
        size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        loss = "-" if row["eval_loss"] is None else f"{row['eval_loss']:.4f}"
        whole = "no" if not row["complete"] else f"yes, but {row['problem']}" if row["problem"] else "yes"
        lines.append((str(row["step"]), when, size, str(row["world_size"] or "-"), loss, whole))
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES) - 1)]
    for line in lines:
        print("  ".join([*(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]]))


def verify_saved(run: str, as_json: bool) -> int:
    """Read every complete checkpoint of a run, print what is wrong, and return the exit code: 1 when something is."""
    found = stored.problems(*_run(run))
    if as_json:
        print(
            json.dumps({"checkpoints": [{"name": name, "problems": lines} for name, lines in found.items()]}, indent=2)
        )
    else:
        for name, lines in found.items():
            print("\n".join(f"{name}: {line}" for line in lines) if lines else f"{name}: whole")
        if not found:
            print(f"{run}: no complete checkpoints")
    return DAMAGED if any(found.values()) else 0


def prune_saved(run: str, keep: int | None, best: int | None, dry: bool, as_json: bool) -> None:
    """Remove what is neither among the newest nor the best, and print it."""
    damaged: list[str] = []
    removed = stored.prune(*_run(run), keep, best, dry, damaged.append)
    if as_json:
        print(json.dumps({"removed": removed, "dry_run": dry, "damaged": damaged}, indent=2))
        return
    for line in damaged:
        print(line)
    for name in removed:
        print(f"{'would remove' if dry else 'removed'} {name}")
    if not removed:
        print(f"{run}: nothing to remove")


def _run(name: str) -> tuple[Job, pathlib.Path]:
    folder = find_folder(name)
    return load_job(str(folder / "job.yaml")), folder
