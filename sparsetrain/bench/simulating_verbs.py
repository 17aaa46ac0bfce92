"""The verbs of `sparsetrain bench` that simulate, or show how good that is."""

from __future__ import annotations

import json
import pathlib

import click

from sparsetrain.bench.verb import (
    ELEMENTS,
    HOSTS,
    RANKS,
    TURNS,
    as_json_option,
    bench,
    options,
    output,
    ranks_of,
    refusing,
)
from sparsetrain.config.errors import JobError

cells = options(
    click.option("--hosts", type=HOSTS, multiple=True, default=(2, 4), show_default=True, help="Network namespaces."),
    click.option("--rate", "rates", multiple=True, default=("100mbit", "1gbit", "10gbit"), show_default=True),
    click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root."),
    click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds after which a rank is ended."),
)


fabrics = options(
    click.option("--fabric", default="flat", show_default=True, help="flat, fat_tree, two_level or sites."),
    click.option(
        "--ranks", type=RANKS, multiple=True, default=(2, 8, 32, 128, 512, 2048, 8192, 16384), show_default=True
    ),
    click.option("--size", type=ELEMENTS, default=25e6, show_default=True, help="Elements of the bucket."),
    click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent."),
    click.option("--rate", default="10gbit", show_default=True, help="Of each link."),
    click.option("--latency", type=float, default=20e-6, show_default=True, help="Seconds of a message."),
    click.option("--supports", metavar="FILE", default=None, help="Real choices of ranks, by bench supports."),
)


@bench.command("simulation")
@cells
@click.option("--size", type=ELEMENTS, default=2e6, show_default=True, help="Elements of the bucket.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--values", default="bf16", show_default=True, help="Code of the values.")
@click.option("--indices", default="elias_fano", show_default=True, help="Code of the places.")
@click.option("--rounds", type=TURNS, default=7, show_default=True, help="Turns of each collective.")
@as_json_option
def bench_simulation(
    hosts: tuple[int, ...],
    rates: tuple[str, ...],
    loopback: bool,
    limit: float,
    size: int,
    density: float,
    values: str,
    indices: str,
    rounds: int,
    as_json: bool,
) -> None:
    """Compare the simulated seconds of every collective with those of real ranks."""
    from sparsetrain.bench.simulation import Plan, measure, show

    with refusing("bench simulation"):
        plan = Plan(size=size, density=density, values=values, indices=indices, rounds=rounds)
        rows = measure(
            [ranks_of(h, r, loopback, limit, 4) for r in (("none",) if loopback else rates) for h in hosts], plan
        )
    click.echo(json.dumps(rows, indent=2) if as_json else show(rows, plan))


@bench.command("forecast")
@cells
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each way.")
@as_json_option
def bench_forecast(
    hosts: tuple[int, ...],
    rates: tuple[str, ...],
    loopback: bool,
    limit: float,
    density: float,
    rounds: int,
    as_json: bool,
) -> None:
    """Compare what `sparsetrain plan` says of a training step with real steps, in every regime and collective."""
    from sparsetrain.bench.forecast import Plan, measure, show

    with refusing("bench forecast"):
        plan = Plan(density=density, rounds=rounds)
        rows = measure(
            [ranks_of(h, r, loopback, limit, 4) for r in (("none",) if loopback else rates) for h in hosts], plan
        )
    click.echo(json.dumps(rows, indent=2) if as_json else show(rows, plan))


@bench.command("supports")
@click.argument("source", metavar="JOB", default="text_gpt")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--ranks", type=RANKS, default=64, show_default=True, help="That train, one after the other.")
@click.option("--steps", type=TURNS, default=30, show_default=True, help="Before it is counted.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that a rank sends.")
@click.option("--out", default=None, metavar="FILE", help="Write the record, for plan and bench scaling --supports.")
@as_json_option
def bench_supports(
    source: str,
    overrides: tuple[str, ...],
    ranks: int,
    steps: int,
    density: float,
    out: str | None,
    as_json: bool,
) -> None:
    """Count how many ranks choose the same places in a real training, and how their unions grow."""
    import dataclasses

    from sparsetrain.bench import plot
    from sparsetrain.bench.supports import Plan, measure, rows, show
    from sparsetrain.config.load import load_job

    with refusing("bench supports"):
        if out:
            plot.refuse_unwritable(out)
        found = measure(load_job(source, overrides), Plan(ranks=ranks, steps=steps, density=density))
    record = json.dumps(dataclasses.asdict(found))
    if out:
        try:
            pathlib.Path(out).write_text(record + "\n", encoding="utf-8")
        except OSError as error:
            raise JobError(f"bench supports: --out {out}: {error.strerror}") from error
    click.echo(record if as_json else show(found, rows(found)))


@bench.command("scaling")
@fabrics
@output
def bench_scaling(
    fabric: str,
    ranks: tuple[int, ...],
    size: int,
    density: float,
    rate: str,
    latency: float,
    supports: str | None,
    as_json: bool,
    picture: str | None,
) -> None:
    """Simulate every collective from 2 to thousands of ranks."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.scaling import Plan, measure, show
    from sparsetrain.plan.fill import recorded

    with refusing("bench scaling"):
        plan = Plan(ranks=ranks, fabric=fabric, size=size, density=density, rate=rate, latency_s=latency)
        rows = measure(plan, None if supports is None else recorded(pathlib.Path(supports)))
    click.echo(json.dumps(rows, indent=2) if as_json else show(rows, plan))
    if picture:
        plot.scaling(rows, picture)


@bench.command("goodput")
@fabrics
@click.option("--node-hours", type=float, multiple=True, default=(10_000.0, 1_000.0), show_default=True)
@click.option("--compute", type=float, default=0.5, show_default=True, help="Seconds of a step without its exchange.")
@click.option("--steps", type=TURNS, default=50_000, show_default=True, help="Of the whole run.")
@click.option("--checkpoint", type=TURNS, default=500, show_default=True, help="Steps from one checkpoint to the next.")
@as_json_option
def bench_goodput(
    fabric: str,
    ranks: tuple[int, ...],
    size: int,
    density: float,
    rate: str,
    latency: float,
    supports: str | None,
    node_hours: tuple[float, ...],
    compute: float,
    steps: int,
    checkpoint: int,
    as_json: bool,
) -> None:
    """Simulate what failing nodes leave of the time, from 2 to thousands of ranks."""
    from sparsetrain.bench import scaling
    from sparsetrain.bench.goodput import Plan, measure, show
    from sparsetrain.plan.fill import recorded

    with refusing("bench goodput"):
        links = scaling.Plan(ranks=ranks, fabric=fabric, size=size, density=density, rate=rate, latency_s=latency)
        plan = Plan(node_hours=node_hours, compute_s=compute, steps=steps, checkpoint=checkpoint)
        rows = measure(plan, links, None if supports is None else recorded(pathlib.Path(supports)))
    click.echo(json.dumps(rows, indent=2) if as_json else show(rows, plan, links))
