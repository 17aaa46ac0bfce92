"""A grid of jobs: overrides with several values, `masks.sparsity=0.9,0.98`, times seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import apply_overrides, parse, read_tree, read_yaml, to_tree

MOST = 10_000  # jobs
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
OPEN, CLOSE = "[{", "]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One job of the grid: the values that it was given on the axes, its seed, and what both are called."""

    values: Mapping[str, str]
    seed: int
    job: Job

    @property
    def label(self) -> str:
        """Return the cell's name without its seed."""
        return label(self.values)


def split(overrides: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Return the overrides with one value, and the values of the others by path.

    Commas part values where they stand outside of brackets and quotes. Raises JobError for a path given twice and a
    value given twice or empty.
    """
    fixed, axes = [], {}
    for override in overrides:
        path, _, text = override.partition("=")
        values = [value.strip() for value in _parts(text)]
        if len(values) == 1:
            fixed.append(override)
            continue
        if path in axes:
            raise JobError(f"{path}: is an axis of the grid twice")
        if "" in values or len({json.dumps(read_yaml(value, path), default=str) for value in values}) < len(values):
            raise JobError(f"{path}: the values of an axis are different and not empty (given {text})")
        axes[path] = values
    return tuple(fixed), axes


def cells(source: str, overrides: Sequence[str], seeds: int, name: str | None = None) -> list[Cell]:
    """Return the jobs of the grid, each checked; seeds, from the job's own on, turn fastest.

    Their run folders lie in a folder of the grid, `log.folder`/`name`, by default the job's name and "-sweep".
    """
    fixed, axes = split(overrides)
    if "seed" in axes:
        raise JobError("seed: is not an axis; --seeds N takes N of them, from the job's own on")
    for path in axes:
        if path == "name" or path.split(".")[0] in ("log", "checkpoint") or path == "cluster.address":
            raise JobError(f"{path}: is not an axis; all runs of a grid lie in one folder and run on one cluster")
    if name is not None and not NAME.fullmatch(name):
        raise JobError(f"--name: letters, digits and . _ - only (given {name[:60]!r})")
    tree = apply_overrides(read_tree(source), fixed)
    found = []
    count = seeds
    for values in axes.values():
        count *= len(values)
    if not 1 <= count <= MOST:
        raise JobError(f"--seeds: the grid has {count} jobs; allowed: 1 to {MOST}")
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        base = to_tree(parse(apply_overrides(tree, tuple(f"{path}={value}" for path, value in values.items()))))
        folder = f"{base['log']['folder']}/{name or base['name'] + '-sweep'}"
        for seed in range(base["seed"], base["seed"] + seeds):
            named = {**base, "seed": seed, "name": f"{label(values)}-s{seed}", "log": {**base["log"], "folder": folder}}
            found.append(Cell(values=values, seed=seed, job=parse(named)))
    return found


def label(values: Mapping[str, str]) -> str:
    """Return the values in one word that can name a folder."""
    parts = (re.sub(r"[^A-Za-z0-9.]+", "_", value).strip("_.") for value in values.values())
    return "-".join(part or "none" for part in parts) or "job"


def _parts(text: str) -> list[str]:
    """Return the parts of `text` between commas that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in OPEN) - (letter in CLOSE)
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
