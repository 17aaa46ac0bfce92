"""The verbs of `sparsetrain bench` that count what is sent: each prints a table, a JSON document, a chart."""

from __future__ import annotations

import json

import click

from sparsetrain.bench.verb import (
    ELEMENTS,
    HOSTS,
    RANKS,
    TURNS,
    as_json_option,
    bench,
    links,
    output,
    ranks_of,
    refusing,
)


@bench.command("growth")
@click.option("--ranks", type=click.IntRange(2), default=4, show_default=True, help="Processes on loopback.")
@click.option("--steps", type=TURNS, default=400, show_default=True, help="Length of the run.")
@click.option("--every", type=TURNS, default=20, show_default=True, help="Steps between mask updates.")
@click.option("--points", type=TURNS, default=5, show_default=True, help="Updates that are looked at.")
@click.option("--sparsity", type=float, default=0.9, show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(4, 16, 64), show_default=True)
@click.option("--share", "shares", type=float, multiple=True, default=(0.02, 0.03, 0.045, 0.06), show_default=True)
@click.option("--limit", type=float, default=1800.0, show_default=True, help="Seconds after which a rank is ended.")
@as_json_option
def bench_growth(
    ranks: int,
    steps: int,
    every: int,
    points: int,
    sparsity: float,
    batches: tuple[int, ...],
    shares: tuple[float, ...],
    limit: float,
    as_json: bool,
) -> None:
    """Compare what RigL grows from candidates with what the dense mean gradient grows, and the bytes of both."""
    from sparsetrain.bench.growth import Plan, measure, show

    with refusing("bench growth"):
        plan = Plan(steps=steps, every=every, points=points, sparsity=sparsity, batches=batches, shares=shares)
        result = measure(ranks_of(ranks, None, True, limit, 4), plan)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


@bench.command("engines")
@click.option("--hosts", type=HOSTS, default=2, show_default=True, help="Network namespaces, a rank in each.")
@links
@click.option("--steps", type=TURNS, default=10, show_default=True, help="Of each engine and exchange.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@as_json_option
def bench_engines(
    hosts: int,
    rate: str | None,
    loopback: bool,
    limit: float,
    steps: int,
    density: float,
    precision: str,
    as_json: bool,
) -> None:
    """Count what a step sends under torch's engine, FSDP2 and DeepSpeed's stages, dense and sparse."""
    from sparsetrain.bench.engines import Plan, measure, show

    with refusing("bench engines"):
        plan = Plan(steps=steps, density=density, precision=precision)
        result = measure(ranks_of(hosts, rate, loopback, limit, 2), plan)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


@bench.command("volume")
@click.option("--ranks", type=RANKS, multiple=True, default=(2, 4, 8, 16, 32, 64), show_default=True)
@click.option("--size", type=ELEMENTS, default=1e6, show_default=True, help="Elements of the gradient.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Steps that count, after three that do not.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the gradients.")
@output
def bench_volume(
    ranks: tuple[int, ...], size: int, density: float, rounds: int, seed: int, as_json: bool, picture: str | None
) -> None:
    """Count what each collective puts on the wire as ranks are added; all ranks in this process, nothing timed."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.table import render
    from sparsetrain.bench.volume import COLUMNS, Plan, measure

    with refusing("bench volume"):
        rows = measure(Plan(ranks=ranks, size=size, density=density, rounds=rounds, seed=seed))
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))
    if picture:
        plot.volume(rows, picture)
