"""A grid of runs, one after the other on one cluster; what is finished is not run again, so a sweep can be stopped."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from sparsetrain.config.errors import JobError
from sparsetrain.config.files import write_whole
from sparsetrain.config.grid import NAME, Cell, cells
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.launch.compare import dense
from sparsetrain.launch.ray_cluster import ray_cluster
from sparsetrain.launch.ray_driver import run_there
from sparsetrain.launch.run import FAILED, STOPPED, Ended, Options, refuse_same, run_one
from sparsetrain.launch.show import silent
from sparsetrain.launch.signals import Stopped, listening
from sparsetrain.track import sweep as summary
from sparsetrain.worker import existing, record

INDEX = "sweep.json"
PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
ALIKE = (("train", "steps"), ("cluster", "workers"))
SPARSE = ("masks", "exchange")  # sections that a dense run has nothing of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """What the command line asks for."""

    source: str
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    name: str | None = None
    with_dense: bool = False


def show_grid(grid: Grid, as_json: bool) -> int:
    """Print the runs and which of them are finished; start nothing."""
    found = _all_cells(grid)
    rows = [
        {"name": cell.job.name, "folder": str(folder), "finished": _finished(cell)}
        for cell in found
        if (folder := record.run_folder(cell.job))
    ]
    if as_json:
        print(json.dumps({"runs": rows}, indent=2))
    else:
        print("\n".join(f"{row['name']}  {row['folder']}{'  (finished)' if row['finished'] else ''}" for row in rows))
    return 0


def run_grid(grid: Grid, as_json: bool) -> int:
    """Run what is not finished, then print and write the table and the figure of all runs in the grid's folder.

    Returns 0, 1 where runs failed (the others are run all the same), or 130 where it was stopped.
    """
    found = _all_cells(grid)
    if len({cell.job.cluster.address for cell in found}) > 1:
        raise JobError("cluster.address: is the same for all runs of a grid")
    folder = record.run_folder(found[0].job).parent
    waiting = [cell for cell in found if not _finished(cell)]
    stream = sys.stderr if as_json else sys.stdout
    _write_index(folder, found)
    try:
        codes = _run_all(waiting, len(found), stream)
    except Stopped:
        codes = [STOPPED]
    try:
        rows = summary.rows(_read_index(folder))
        paths = summary.write(rows, folder) if rows else []
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        raise JobError(f"{folder}: no table can be made: {type(error).__name__}: {error}") from error
    if rows:
        print(json.dumps({"rows": rows}, indent=2) if as_json else f"\n{summary.table(rows)}\n")
        print("\n".join(str(path) for path in paths), file=stream)
    if failed := sum(code == FAILED for code in codes):
        print(
            f"{folder.name}: {failed} of {len(found)} runs failed; the same command tries them again", file=sys.stderr
        )
    if STOPPED in codes:
        print(f"{folder.name}: stopped; the same command goes on with it", file=sys.stderr)
        return STOPPED
    return max(codes, default=0)


def _finished(cell: Cell) -> bool:
    """Return whether the cell's run is there. Raises JobError where it is of another job, also one that only has other
    steps or workers: in a table, runs are alike."""
    folder, advice = record.run_folder(cell.job), "give the sweep a new --name"
    found = existing.finished(cell.job, folder, advice)
    kept = (existing.stored_tree(folder) or {}) if found else {}
    tree = to_tree(cell.job)
    for section, key in ALIKE if found else ():
        own, other = tree[section][key], (kept.get(section) or {}).get(key)
        if own != other:
            raise JobError(
                f"{section}.{key}: is {own} here and {other} in the run; {folder} holds another job: {advice}"
            )
    return found


def _all_cells(grid: Grid) -> list[Cell]:
    found = cells(grid.source, grid.overrides, grid.seeds, grid.name)
    if grid.with_dense:
        found = [*_dense_cells(found), *found]
    refuse_same([cell.job for cell in found])
    return found


def _dense_cells(found: Sequence[Cell]) -> list[Cell]:
    """Return a dense run for each seed, and for each value on the axes that mean something to it."""
    made: dict[str, Cell] = {}
    for cell in found:
        values = {path: value for path, value in cell.values.items() if path.split(".")[0] not in SPARSE}
        values = {"masks": "dense", **values}
        name = f"{dataclasses.replace(cell, values=values).label}-s{cell.seed}"
        if name not in made:
            job = dataclasses.replace(dense(cell.job), name=name)
            made[name] = dataclasses.replace(cell, values=values, job=job)
    return list(made.values())


def _run_all(waiting: Sequence[Cell], total: int, stream: TextIO) -> list[int]:
    """Run the cells in turn and return their exit codes; stop at the first that was stopped."""
    if not waiting:
        return []
    codes: list[int] = []
    widest = max(
        (cell.job.cluster for cell in waiting), key=lambda cluster: cluster.workers.max * cluster.cpus_per_worker
    )
    done = total - len(waiting)
    with listening() as stop, ray_cluster(widest):
        for cell in waiting:
            stop.check()
            ended = _run(cell.job)
            codes.append(ended.code)
            if ended.code == STOPPED:
                return codes
            done += 1
            print(f"[{done}/{total}] {cell.job.name}  {_outcome(ended)}", file=stream, flush=True)
    return codes


def _run(job: Job) -> Ended:
    try:
        return run_one(job, Options(as_json=True), start=run_there, shown=silent)
    except JobError as error:  # one that only a rank could find; the other jobs may be well
        print(f"{job.name}: {error}", file=sys.stderr)
        return Ended(job=job, folder=record.run_folder(job), status="failed", code=FAILED)


def _outcome(ended: Ended) -> str:
    figures = ended.result or {}
    parts = [
        f"{key} {figures[f'eval/{key}']:.4g}"
        for key in ("loss", "accuracy")
        if isinstance(figures.get(f"eval/{key}"), float)
    ]
    return "  ".join([*parts, f"{figures['wall_s']:.0f} s"]) if figures else ended.status


def _write_index(folder: pathlib.Path, found: Sequence[Cell]) -> None:
    """Add these runs to what the grid's folder lists; they are given by names, so that the folder can be moved."""
    try:
        known = _index(folder)
        known |= {cell.job.name: {"values": dict(cell.values), "seed": cell.seed} for cell in found}
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / INDEX, json.dumps(known, indent=1))
    except OSError as error:
        raise JobError(f"log.folder: cannot write {folder}: {error.strerror or error}") from error


def _read_index(folder: pathlib.Path) -> list[summary.Run]:
    """Return the finished runs that the folder lists."""
    return [
        summary.Run(values=about["values"], seed=about["seed"], folder=folder / name)
        for name, about in _index(folder).items()
        if existing.status(folder / name).get("status") == "finished"
    ]


def _well(about: Any) -> bool:
    keys, values = about["values"].keys(), about["values"].values()
    return (
        isinstance(about["seed"], int)
        and all(PATH.fullmatch(key) and key not in summary.measured() for key in keys)
        and all(isinstance(value, str) and value.isprintable() for value in values)
    )


def _index(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():  # a pipe would keep us waiting
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(NAME.fullmatch(name) and _well(about) for name, about in found.items()):
            raise ValueError("not the list of a grid's runs")
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise JobError(f"{path}: cannot be read: {error}; remove it, and the same command writes it anew") from error
    return found
