"""`sparsetrain plan`: what a job would cost on a cluster, before paying for it."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import click

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.rate import parse_rate
from sparsetrain.plan.cluster import ClusterPlan, load_cluster
from sparsetrain.plan.compute import profile_of
from sparsetrain.plan.fill import Fill, Random, recorded
from sparsetrain.plan.forecast import Forecast, forecast, what_if
from sparsetrain.plan.model import Model, model_of
from sparsetrain.plan.step import Profile
from sparsetrain.plan.words import grid, heading, recommendation, table

RATES = ("10mbit", "100mbit", "1gbit", "10gbit", "100gbit")
NODES = (2, 4, 8, 16, 32, 64)


def plan_job(
    job: Job,
    cluster: str | None,
    settings: tuple[str, ...],
    supports: str | None,
    grid_asked: bool,
    picture: str | None,
    as_json: bool,
) -> None:
    """Print the forecast of a job; measures what the cluster file does not say. Raises JobError."""
    there = load_cluster(cluster, settings)
    fill: Fill = Random() if supports is None else recorded(pathlib.Path(supports))
    model = model_of(job)
    profile = profile_of(job, there.compute_s, there.slower)
    found = forecast(job, model, there, profile, fill)
    rows = _grid(job, model, there, profile, fill) if grid_asked or picture else []
    if picture:
        _draw(rows, job, picture)
    if as_json:
        click.echo(json.dumps(document(job, there, found, rows), indent=2))
        return
    parts = [heading(job, model, there, found), table(found, there), "\n".join(recommendation(job, there, found))]
    if rows:
        parts.append("The quickest way, and how many times as quick as dense:\n" + grid(rows))
    click.echo("\n\n".join(parts))


def document(job: Job, cluster: ClusterPlan, found: Forecast, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the forecast for programs; what has no end is null."""
    ways = []
    for way in found.ways:
        row = {**way.row(), "memory": way.memory}
        ways.append({k: None if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()})
    return {
        "job": job.name,
        "workers": found.workers,
        "compute_s": found.compute_s,
        "ways": ways,
        "chosen": found.chosen.setting.name,
        "why": found.why,
        "said": recommendation(job, cluster, found),
        "what_if": rows,
    }


def _grid(job: Job, model: Model, cluster: ClusterPlan, profile: Profile, fill: Fill) -> list[dict[str, Any]]:
    rates = [bits / 8 for text in RATES if (bits := parse_rate(text)) is not None]
    return what_if(job, model, cluster, profile, fill, rates, NODES)


def _draw(rows: list[dict[str, Any]], job: Job, picture: str) -> None:
    try:
        from sparsetrain.plan.picture import draw

        draw(rows, f"{job.name}: the quickest way", pathlib.Path(picture))
    except ImportError as error:
        raise JobError("--plot: needs matplotlib: pip install 'sparsetrain[report]'") from error
    except (OSError, ValueError) as error:
        raise JobError(f"--plot {picture}: {getattr(error, 'strerror', None) or error}") from error
