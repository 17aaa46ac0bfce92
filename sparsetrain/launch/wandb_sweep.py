"""A grid of jobs as a sweep of W&B, whose agents then run its cells: `wandb sweep FILE`, `wandb agent ID`."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from sparsetrain.config.errors import JobError
from sparsetrain.config.grid import cells, split
from sparsetrain.config.load import read_yaml


def sweep_config(source: str, overrides: tuple[str, ...], seeds: int, name: str | None) -> dict[str, Any]:
    """Return the sweep: method grid, a parameter for each axis and one for the seed, and the command of a cell, which
    names its run after the id that the agent gives it. Raises JobError for a grid that is none."""
    job = cells(source, overrides, seeds, name)[0].job  # all are checked
    fixed, axes = split(overrides)
    first = job.seed
    parameters: dict[str, Any] = {path: {"values": [_value(v, path) for v in values]} for path, values in axes.items()}
    parameters["seed"] = {"values": list(range(first, first + seeds))}
    called = name or job.log.folder.rsplit("/", 1)[-1]
    words = ["sparsetrain", "run", source, *fixed, f"log.folder={job.log.folder}", "log.wandb.mode=online"]
    # The shell puts the id, which the agent sets in the environment of each run, into the name; $@ are the parameters.
    line = f'exec {shlex.join(words)} "$@" "name=cell-$WANDB_RUN_ID"'
    found: dict[str, Any] = {
        "program": "sparsetrain",
        "name": called,
        "method": "grid",
        "metric": {"name": "eval/loss.min", "goal": "minimize"},
        "parameters": parameters,
        "command": ["/bin/sh", "-c", line, "sparsetrain", "${args_no_hyphens}"],
        "project": job.log.wandb.project,
    }
    if job.log.wandb.entity:
        found["entity"] = job.log.wandb.entity
    return found


def export(source: str, overrides: tuple[str, ...], seeds: int, name: str | None) -> str:
    """Return the sweep as YAML, with how to use it in front."""
    try:
        text = yaml.safe_dump(sweep_config(source, overrides, seeds, name), sort_keys=False, width=1000)
    except yaml.YAMLError as error:
        raise JobError(f"--wandb: {error}") from error
    return f"# wandb sweep THIS_FILE, then here and on as many machines as you like: wandb agent SWEEP_ID\n{text}"


def _value(text: str, path: str) -> Any:
    """Return a number where the agent will write it as it is read here, else the text."""
    value = read_yaml(text, path)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and read_yaml(str(value), path) == value else text
