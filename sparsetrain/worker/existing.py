"""A run folder that exists already: is it this job's, and how far has it come?"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import LONGEST, parse, read_yaml, to_tree

# What may change when a run is continued: how far, where, and what is written down.
FREE = ("train.steps", "log.", "checkpoint.", "cluster.", "recovery.")


def finished(job: Job, folder: pathlib.Path, advice: str | None = None) -> bool:
    """Return whether the folder holds a finished run of this job with at least as many steps.

    Raises JobError, with advice, when it holds another job, or one that the job says not to resume.
    """
    kept = stored_tree(folder)
    if kept is None:
        return False
    advice = advice or f"give a new name (name={next_name(folder)}) or --fresh"
    difference = first_difference(kept, to_tree(job))
    if difference and not trained(folder):
        return False
    if difference:
        raise JobError(f"{difference}; {folder} holds another job: {advice}")
    steps = dict(_flat(kept, "")).get("train.steps")
    if status(folder).get("status") == "finished" and isinstance(steps, int) and steps >= job.train.steps:
        return True
    if not job.checkpoint.resume and (folder / "metrics.jsonl").exists():
        raise JobError(f"checkpoint.resume: is false, but {folder} holds a run: {advice}")
    return False


def trained(folder: pathlib.Path) -> bool:
    """Return whether the folder holds anything of a run but what it was asked to do and why it was refused."""
    return (folder / "metrics.jsonl").exists() or any((folder / "checkpoints").glob("*"))


def stored_tree(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the job of a run folder, or None when there is none; what a release before ours did not know stands at its
    default. Raises JobError when it cannot be read."""
    path = folder / "job.yaml"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from error
    tree = read_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise JobError(f"{path}: a job file holds a mapping")
    try:
        return to_tree(parse(tree))
    except JobError:
        return tree  # a comparison with ours names what is wrong


def status(folder: pathlib.Path) -> dict[str, Any]:
    """Return run.json, or an empty mapping when there is none that can be read."""
    path = folder / "run.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}  # a pipe would keep us waiting
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return "path: is NEW here and OLD in the run" for the first setting that must be equal and is not."""
    before, after = dict(_flat(old, "")), dict(_flat(new, ""))
    for path in {**after, **before}:
        if path.startswith(FREE) or before.get(path) == after.get(path):
            continue
        return f"{path}: is {after.get(path)!r} here and {before.get(path)!r} in the run"
    return None


def next_name(folder: pathlib.Path) -> str:
    """Return the first of NAME-2, NAME-3, ... that is free beside the folder."""
    number = 2
    while (folder.parent / f"{folder.name}-{number}").exists():
        number += 1
    return f"{folder.name}-{number}"


def move_aside(folder: pathlib.Path) -> pathlib.Path | None:
    """Rename the folder to the first free NAME.1, NAME.2, ... and return that; None when there is no folder."""
    if not folder.exists():
        return None
    number = 1
    while folder.with_name(f"{folder.name}.{number}").exists():
        number += 1
    return folder.rename(folder.with_name(f"{folder.name}.{number}"))


def _flat(value: Any, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth < 20:  # an alias in a hostile file can make a mapping its own part
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    else:
        yield prefix, value
