"""The verbs of `sparsetrain bench` that time: each prints a table, a JSON document, a chart."""

from __future__ import annotations

import json

import click

from sparsetrain.bench.verb import ELEMENTS, HOSTS, TURNS, as_json_option, bench, links, output, ranks_of, refusing
from sparsetrain.config.errors import JobError

RATES = ("none", "1gbit", "200mbit", "50mbit")


@bench.command("select")
@click.option("--size", "sizes", type=ELEMENTS, multiple=True, default=(1e7,), show_default=True, help="Elements.")
@click.option("--density", "densities", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Cores that a kernel may take.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each candidate.")
@output
def bench_select(
    sizes: tuple[int, ...],
    densities: tuple[float, ...],
    threads: int,
    rounds: int,
    as_json: bool,
    picture: str | None,
) -> None:
    """Time selection with error feedback against one memory pass and against torch.topk."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.select import COLUMNS, measure
    from sparsetrain.bench.table import render

    try:
        rows = measure(sizes, densities, threads, rounds)
    except (ValueError, OverflowError) as error:
        raise JobError(f"bench select: {error}") from error
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))
    if picture:
        plot.select(rows, picture)


@bench.command("compute")
@click.option(
    "--layer", "layers", multiple=True, default=("4096x1024",), show_default=True, help="OUTPUTSxINPUTS[xHEIGHTxWIDTH]."
)
@click.option("--batch", "batches", type=int, multiple=True, default=(1024, 32), show_default=True)
@click.option(
    "--density", "densities", type=float, multiple=True, default=(0.5, 0.2, 0.1, 0.05, 0.02), show_default=True
)
@click.option("--pixels", type=int, default=14, show_default=True, help="Edge of the images of convolutions.")
@click.option("--threads", type=int, default=1, show_default=True, help="Cores that a product may take.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--fresh", is_flag=True, help="Measure again what this machine has measured before.")
@as_json_option
def bench_compute(
    layers: tuple[str, ...],
    batches: tuple[int, ...],
    densities: tuple[float, ...],
    pixels: int,
    threads: int,
    rounds: int,
    device: str,
    precision: str,
    fresh: bool,
    as_json: bool,
) -> None:
    """Time every way to multiply by sparse weights against the best dense product, forward and backward."""
    from sparsetrain.bench.compute import Setting, measure, show
    from sparsetrain.bench.kept import once

    shapes = []
    for layer in layers:
        sides = layer.split("x")
        if len(sides) not in (2, 4) or not all(side.isdecimal() for side in sides):
            raise JobError(f"bench compute: --layer {layer}: must be two or four whole numbers, 4096x1024 say")
        shapes.append(tuple(map(int, sides)))
    with refusing("bench compute"):
        setting = Setting(
            layers=tuple(shapes),
            batches=batches,
            densities=densities,
            threads=threads,
            rounds=rounds,
            pixels=pixels,
            device=device,
            dtype=precision,
        )
        result = once("compute", setting, lambda: measure(setting), fresh)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


@bench.command("acceleration")
@click.argument("job", default="fashion_mnist")
@click.argument("overrides", nargs=-1)
@click.option("--compute", default="auto", show_default=True, help="What the sparse run's compute is.")
@click.option("--steps", type=TURNS, default=10, show_default=True, help="Of each run in a turn.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each run.")
@click.option("--threads", type=int, default=2, show_default=True, help="Cores that a step may take.")
@as_json_option
def bench_acceleration(
    job: str, overrides: tuple[str, ...], compute: str, steps: int, rounds: int, threads: int, as_json: bool
) -> None:
    """Time whole training steps of a job: dense, masked dense, and with sparse compute; and count what is held."""
    from sparsetrain.bench.acceleration import measure, show

    with refusing("bench acceleration"):
        result = measure(job, overrides, compute, steps, rounds, threads)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


@bench.command("codec")
@click.option("--density", "densities", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True)
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each code.")
@output
def bench_codec(densities: tuple[float, ...], rounds: int, as_json: bool, picture: str | None) -> None:
    """Measure every code on a real gradient: bits per entry, value error, throughput."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.codec import COLUMNS, measure
    from sparsetrain.bench.table import render

    with refusing("bench codec"):
        rows = measure(densities, rounds)
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))
    if picture:
        plot.codec(rows, picture)


@bench.command("exchange")
@click.option("--hosts", type=click.IntRange(0, 512), default=4, show_default=True, help="Ranks; 0: 4 on loopback.")
@links
@click.option("--size", type=ELEMENTS, default=25e6, show_default=True, help="Elements of the gradient.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--transport", default="gloo", show_default=True, help="gloo, or mpi (with --loopback).")
@output
def bench_exchange(
    hosts: int,
    rate: str | None,
    size: int,
    density: float,
    rounds: int,
    loopback: bool,
    transport: str,
    limit: float,
    as_json: bool,
    picture: str | None,
) -> None:
    """Time the mean of a gradient over several hosts: dense, naive, PowerSGD, and ours."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.exchange import Plan, measure, show

    with refusing("bench exchange"):
        ranks = ranks_of(hosts, rate, loopback, limit, 4, transport)
        result = measure(ranks, Plan(size=size, density=density, rounds=rounds))
    click.echo(json.dumps(result, indent=2) if as_json else show(result))
    if picture:
        plot.exchange(result["rows"], picture)


@bench.command("step")
@click.option("--hosts", type=click.IntRange(0, 512), default=2, show_default=True, help="Ranks; 0: 2 on loopback.")
@links
@click.option("--layers", type=int, default=6, show_default=True, help="Of the GPT.")
@click.option("--width", type=int, default=320, show_default=True, help="Of its layers.")
@click.option("--vocabulary", type=int, default=8192, show_default=True, help="Tokens that it knows.")
@click.option("--context", type=int, default=128, show_default=True, help="Tokens of a sequence.")
@click.option("--batch", type=int, default=4, show_default=True, help="Sequences a rank and step.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries sent a step.")
@click.option("--steps", type=TURNS, default=10, show_default=True, help="Steps in a turn.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each candidate.")
@output
def bench_step(
    hosts: int,
    rate: str | None,
    layers: int,
    width: int,
    vocabulary: int,
    context: int,
    batch: int,
    density: float,
    steps: int,
    rounds: int,
    loopback: bool,
    limit: float,
    as_json: bool,
    picture: str | None,
) -> None:
    """Time whole training steps of a GPT: compute only, DDP with torch's hooks, and ours."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.step import Plan, measure, show

    with refusing("bench step"):
        ranks = ranks_of(hosts, rate, loopback, limit, 2)
        plan = Plan(
            layers=layers,
            width=width,
            vocabulary=vocabulary,
            context=context,
            batch=batch,
            density=density,
            steps=steps,
            rounds=rounds,
        )
        result = measure(ranks, plan)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))
    if picture:
        plot.step(result["rows"], picture)


@bench.command("auto")
@click.option("--hosts", type=HOSTS, multiple=True, default=(2, 4), show_default=True, help="Ranks.")
@click.option("--rate", "rates", multiple=True, help=f"Default: {', '.join(RATES)}.")
@click.option("--then", help="Rate that the links change to when the planner has settled.")
@click.option("--sparsity", "sparsities", type=float, multiple=True, default=(0.0, 0.9), show_default=True)
@click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root.")
@click.option("--layers", type=int, default=4, show_default=True, help="Of the GPT, 128 wide.")
@click.option("--batch", type=int, default=8, show_default=True, help="Sequences a rank and step.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that sparse sends.")
@click.option("--rank", type=int, default=4, show_default=True, help="Of lowrank's factors.")
@click.option("--factor", type=float, default=1.0, show_default=True, help="Steps of lossy regimes to equal loss.")
@click.option("--steps", type=TURNS, default=5, show_default=True, help="Steps in a turn.")
@click.option("--rounds", type=TURNS, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds after which a rank is ended.")
@as_json_option
def bench_auto(
    hosts: tuple[int, ...],
    rates: tuple[str, ...],
    then: str | None,
    sparsities: tuple[float, ...],
    loopback: bool,
    layers: int,
    batch: int,
    density: float,
    rank: int,
    factor: float,
    steps: int,
    rounds: int,
    limit: float,
    as_json: bool,
) -> None:
    """Compare what the planner takes with the best regime, over links of several rates."""
    from sparsetrain.bench.auto import Plan, cells, measure, show

    with refusing("bench auto"):
        plans = [
            (
                ranks_of(count, rate, loopback, limit, 2, then=then),
                Plan(
                    layers=layers,
                    batch=batch,
                    density=density,
                    rank=rank,
                    factor=factor,
                    sparsity=sparsity,
                    steps=steps,
                    rounds=rounds,
                ),
            )
            for rate, count, sparsity in cells(rates or (("none",) if loopback else RATES), hosts, sparsities)
        ]
        rows = []
        for ranks, plan in plans:
            rows.append(measure(ranks, plan))
            click.echo(
                f"[{len(rows)}/{len(plans)}] {ranks.describe()}: {rows[-1]['took']}, {rows[-1]['why']}", err=True
            )
    click.echo(json.dumps(rows, indent=2) if as_json else show(rows, plans[0][1]))
